"""`fewstep bench`: the time of a picture by its parts, and memory, of fewstep's engines and of diffusers.

plan           what is drawn, and the floating-point operations that it takes
arrangements   ways to draw it: fewstep with an engine; diffusers as its guide says, and tuned by hand
process        runs a function in a process of its own
turn           one turn of an arrangement, in such a process
run            the turns, one after another, and what they add up to
table          the table and the chart
"""
