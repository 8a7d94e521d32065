// Requests to the server that this page came from.

const KEY = 'fewstep-key';

export class ApiError extends Error {
  constructor(status, error) {
    super(error?.message ?? `the server answered ${status}`);
    this.status = status;
    this.field = error?.param ?? null;
  }
}

export class Gone extends Error {
  constructor() {
    super('the server does not answer');
  }
}

export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

async function answer(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...(key ? { authorization: `Bearer ${key}` } : {}), ...options.headers };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    throw error.name === 'AbortError' ? error : new Gone();
  }
  if (!response.ok) {
    const body = await response.json().catch(() => ({}));
    throw new ApiError(response.status, body.error);
  }
  return response;
}

export async function offer() {
  return (await answer('/v1/offer')).json();
}

export async function alive() {
  try {
    return (await fetch('/healthz')).ok;
  } catch {
    return false;
  }
}

// Draw, and call on.step and on.picture as events come. Returns the milliseconds until the last picture.
export async function draw(request, on, signal) {
  const begun = performance.now();
  const response = await answer('/v1/sample', {
    method: 'POST',
    headers: { 'content-type': 'application/json', accept: 'text/event-stream' },
    body: JSON.stringify(request),
    signal,
  });
  let last = begun;
  for await (const { name, data } of events(response.body)) {
    if (name === 'step') on.step?.(data);
    if (name === 'picture') {
      last = performance.now();
      on.picture?.(data, last - begun);
    }
    if (name === 'error') throw new ApiError(400, data.error);
  }
  return last - begun;
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  while (true) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      throw error.name === 'AbortError' ? error : new Gone();
    }
    if (part.done) return;
    text += part.value;
    let end;
    while ((end = text.indexOf('\n\n')) >= 0) {
      const lines = text.slice(0, end).split('\n');
      text = text.slice(end + 2);
      const name = lines.find((line) => line.startsWith('event: '))?.slice(7);
      const data = lines.find((line) => line.startsWith('data: '))?.slice(6);
      if (name) yield { name, data: JSON.parse(data) };
    }
  }
}
