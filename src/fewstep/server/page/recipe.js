// Recipes: out of PNG files, into the controls, and as a command or Python that draws the picture again.

const FIELDS = [
  'steps', 'solver', 'guidance_scale', 'negative_prompt', 'nag_scale', 'seed', 'width', 'height', 'strength',
];

// The recipe in a PNG that fewstep wrote; null if there is none.
export async function recipeIn(file) {
  const data = new DataView(await file.arrayBuffer());
  if (data.byteLength < 8 || data.getUint32(0) !== 0x89504e47) return null;
  for (let at = 8; at + 12 <= data.byteLength; ) {
    const length = data.getUint32(at);
    const kind = latin(data, at + 4, 4);
    if (kind === 'iTXt' && latin(data, at + 8, 8) === 'fewstep\0') {
      const start = at + 8 + 8 + 2; // keyword, its end, whether compressed and how
      const bytes = new Uint8Array(data.buffer, start, at + 8 + length - start);
      const language = bytes.indexOf(0);
      const translated = bytes.indexOf(0, language + 1);
      try {
        return JSON.parse(new TextDecoder().decode(bytes.subarray(translated + 1)));
      } catch {
        return null;
      }
    }
    at += length + 12;
  }
  return null;
}

function latin(data, at, length) {
  let text = '';
  for (let i = 0; i < length && at + i < data.byteLength; i++) text += String.fromCharCode(data.getUint8(at + i));
  return text;
}

// What the page would ask for, to draw the picture of a recipe again.
export function requestOf(recipe) {
  const request = { prompts: [recipe.prompt], model: recipe.model };
  for (const field of FIELDS) {
    if (recipe[field] !== null && recipe[field] !== undefined && recipe[field] !== '') request[field] = recipe[field];
  }
  if (request.nag_scale === 1) delete request.nag_scale;
  request.loras = recipe.lora.map((one) => `${one.file}:${one.weight}`);
  return request;
}

// What the page does not have of a recipe.
export function lacking(recipe, offer, image) {
  return [
    ...(offer.models.includes(recipe.model) ? [] : [`the model ${recipe.model}`]),
    ...recipe.lora.map((one) => one.file).filter((name) => !offer.loras.includes(name)).map((name) => `the LoRA ${name}`),
    ...(recipe.steps > offer.limits.steps ? [`${recipe.steps} steps`] : []),
    ...(recipe.image && !image ? ['the picture that it was drawn from'] : []),
  ];
}

export function command(request) {
  const parts = ['fewstep sample', quoted(request.prompts[0])];
  if (request.model && request.model !== 'emoji') parts.push('--model', quoted(request.model));
  for (const lora of request.loras ?? []) parts.push('--lora', quoted(lora));
  for (const field of FIELDS) {
    if (request[field] !== undefined) parts.push(`--${field.replaceAll('_', '-')}`, quoted(String(request[field])));
  }
  if (request.image) parts.push('--image', 'START.png');
  return parts.join(' ');
}

function quoted(text) {
  return /^[\w.,:/+-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

export function python(request) {
  const loras = request.loras ? `, loras=${JSON.stringify(request.loras)}` : '';
  const options = FIELDS.filter((field) => request[field] !== undefined).map(
    (field) => `${field}=${JSON.stringify(request[field])}`,
  );
  if (request.image) options.push('image=Path("START.png").read_bytes()');
  const given = [JSON.stringify(request.prompts[0]), ...options].join(', ');
  return [
    ...(request.image ? ['from pathlib import Path', ''] : []),
    'import fewstep',
    '',
    `with fewstep.Session(${JSON.stringify(request.model ?? 'emoji')}${loras}) as session:`,
    `    for picture in session.draw(${given}):`,
    '        picture.image.save("picture.png")',
  ].join('\n');
}
