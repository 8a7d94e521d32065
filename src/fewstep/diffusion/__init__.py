"""Pure maths on tensors: schedules, solvers, guidance, consistency. No models, no files."""
