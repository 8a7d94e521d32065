// The page: type, and see the picture change.

import { html, render, useEffect, useRef, useState } from '/page/vendor/htm-preact.js';
import { ApiError, Gone, alive, draw, offer as askOffer, setKey } from '/page/api.js';
import { all, keep, remove } from '/page/history.js';
import { command, lacking, python, recipeIn, requestOf } from '/page/recipe.js';
import { Sketch } from '/page/sketch.js';

const SETTINGS = 'fewstep-settings';
const THEME = 'fewstep-theme';
const RETRY_MS = 2000;
const START = {
  prompt: 'a red fox', steps: 4, solver: 'auto', guidance: '', negative: '', seed: 0, width: '', height: '', strength: 0.6, compare: false,
};
const BASELINE = { solver: 'ddim', steps: 32 };
const FEW_STEPS = 8;
const MANY_STEPS = 50;

// --- what is asked for ---------------------------------------------------------------------------------------

function requestFor(settings, loras, image) {
  const request = { prompts: [settings.prompt.trim()], steps: settings.steps, seed: settings.seed, loras: loras.map(nameAndWeight) };
  if (settings.model) request.model = settings.model;
  if (settings.solver !== 'auto') request.solver = settings.solver;
  if (settings.guidance !== '') request.guidance_scale = Number(settings.guidance);
  if (settings.negative.trim()) {
    request.negative_prompt = settings.negative.trim();
    if (!(request.guidance_scale > 1)) request.nag_scale = 5;
  }
  for (const side of ['width', 'height']) if (settings[side] !== '') request[side] = Number(settings[side]);
  if (image) Object.assign(request, { image: image.slice(image.indexOf(',') + 1), strength: settings.strength });
  return request;
}

// The model of that name; the server's first if it has none, such as one of an earlier server.
function offered(model, { models }) {
  return models.includes(model) ? model : models[0];
}

// The server's LoRAs that the model takes.
function fitting(model, { loras, fits }) {
  return fits[model] ?? loras;
}

// The end of the slider: few steps with an acceleration LoRA, many without, and never below what is set.
function mostSteps(steps, plugged, { accelerations, limits }) {
  const usual = plugged.some(({ name }) => accelerations.includes(name)) ? FEW_STEPS : MANY_STEPS;
  return Math.min(Math.max(usual, steps), limits.steps);
}

function nameAndWeight({ name, weight }) {
  return `${name}:${weight}`;
}

// The same picture without acceleration: the many steps that people draw in otherwise.
function baselineOf(request, accelerations) {
  const loras = request.loras.filter((one) => !accelerations.includes(one.slice(0, one.lastIndexOf(':'))));
  const { guidance_scale, nag_scale, ...rest } = request;
  return { ...rest, ...BASELINE, loras };
}

function stored(name, usual) {
  try {
    return { ...usual, ...JSON.parse(localStorage.getItem(name)) };
  } catch {
    return usual;
  }
}

// --- drawing ---------------------------------------------------------------------------------------------------

// The picture of a request, drawn anew whenever the request changes; what is under way is given up.
function usePicture(request, ready, onError) {
  const [shown, setShown] = useState({ image: null, entry: null, busy: 0, ms: null });
  const text = JSON.stringify(request);
  useEffect(() => {
    if (!ready || !request) {
      setShown((old) => ({ ...old, busy: 0 }));
      return undefined;
    }
    const stop = new AbortController();
    const on = {
      step: ({ step, steps }) => setShown((old) => ({ ...old, busy: step / steps })),
      picture: (entry, ms) =>
        setShown({ image: `data:image/${entry.format};base64,${entry.image}`, entry, busy: 0, ms, request }),
    };
    setShown((old) => ({ ...old, busy: 0.02 }));
    draw(request, on, stop.signal)
      .then(() => onError(null))
      .catch((error) => {
        if (error.name === 'AbortError') return;
        setShown((old) => ({ ...old, busy: 0 }));
        onError(error);
      });
    return () => stop.abort();
  }, [text, ready]);
  return shown;
}

function Shown({ title, shown, aspect }) {
  return html`<figure>
    <div class="frame" style=${{ '--aspect': aspect }}>
      ${shown.image && html`<img src=${shown.image} alt=${shown.request.prompts[0]} />`}
      ${shown.busy > 0 && html`<div class="busy" style=${{ transform: `scaleX(${shown.busy})` }}></div>`}
    </div>
    <figcaption><span>${title}</span><span>${shown.ms === null ? '' : `${Math.round(shown.ms)} ms`}</span></figcaption>
  </figure>`;
}

// --- controls --------------------------------------------------------------------------------------------------

function Slider({ label, value, shown, ...options }) {
  return html`<label
    ><span class="head"><span>${label}</span><span class="value">${shown ?? value}</span></span>
    <input type="range" aria-label=${label} value=${value} ...${options}
  /></label>`;
}

function Controls({ settings, change, offer, loras, plugged, setLoras, image, setImage }) {
  const [sketching, setSketching] = useState(false);
  const weigh = (name, weight) => setLoras(loras.map((one) => (one.name === name ? { name, weight } : one)));
  const take = async (file) => file && setImage(await dataUrl(file));
  return html`<section class="card controls" aria-label="Settings">
    ${offer.models.length > 1 &&
    html`<label
      >Model
      <select value=${settings.model} onChange=${(e) => change({ model: e.target.value })}>
        ${offer.models.map((one) => html`<option value=${one}>${one}</option>`)}
      </select></label
    >`}
    <${Slider}
      label="Steps"
      min="1"
      max=${mostSteps(settings.steps, plugged, offer)}
      value=${settings.steps}
      onInput=${(e) => change({ steps: +e.target.value })}
    />
    <label
      >Solver
      <select value=${settings.solver} onChange=${(e) => change({ solver: e.target.value })}>
        ${offer.solvers.map((one) => html`<option value=${one}>${one}</option>`)}
      </select></label
    >
    <fieldset>
      <legend>LoRAs</legend>
      ${fitting(settings.model, offer).map((name) => {
        const own = loras.find((one) => one.name === name);
        return html`<${Slider}
          label=${name}
          min="0"
          max="1.5"
          step="0.05"
          value=${own?.weight ?? 0}
          shown=${(own?.weight ?? 0).toFixed(2)}
          onInput=${(e) => weigh(name, +e.target.value)}
        />`;
      })}
      ${fitting(settings.model, offer).length === 0 && html`<span class="hint">This server offers none for this model.</span>`}
    </fieldset>
    <div class="row">
      <label class="grow"
        >Seed
        <input type="number" min="0" value=${settings.seed} onInput=${(e) => change({ seed: Math.max(0, +e.target.value || 0) })}
      /></label>
      <button type="button" title="Another seed" onClick=${() => change({ seed: Math.floor(Math.random() * 2 ** 31) })}>New</button>
    </div>
    <label
      >Guidance
      <input
        type="number"
        min="0"
        max="50"
        step="0.5"
        placeholder="as the model recommends"
        value=${settings.guidance}
        onInput=${(e) => change({ guidance: e.target.value })}
    /></label>
    <label
      >Keep away from
      <input type="text" placeholder="negative prompt" value=${settings.negative} onInput=${(e) => change({ negative: e.target.value })}
    /></label>
    <div class="row">
      ${['width', 'height'].map(
        (side) => html`<label class="grow"
          >${side === 'width' ? 'Width' : 'Height'}
          <input
            type="number"
            min="8"
            step="8"
            placeholder="auto"
            value=${settings[side]}
            onChange=${(e) => change({ [side]: e.target.value })}
        /></label>`,
      )}
    </div>
    <fieldset>
      <legend>Start picture</legend>
      ${sketching
        ? html`<${Sketch} onChange=${setImage} />`
        : image && html`<img class="start" src=${image} alt="The picture that drawing starts from" />`}
      ${image &&
      html`<${Slider}
        label="Strength"
        min="0.1"
        max="1"
        step="0.05"
        value=${settings.strength}
        shown=${settings.strength.toFixed(2)}
        onInput=${(e) => change({ strength: +e.target.value })}
      />`}
      <div class="row">
        <label class="grow"
          >Open
          <input type="file" accept="image/png,image/jpeg,image/webp" onChange=${(e) => take(e.target.files[0])}
        /></label>
      </div>
      <div class="row">
        <button type="button" aria-pressed=${sketching} onClick=${() => setSketching(!sketching)}>Sketch</button>
        ${image &&
        html`<button
          type="button"
          onClick=${() => {
            setSketching(false);
            setImage(null);
          }}
        >
          Remove
        </button>`}
      </div>
    </fieldset>
  </section>`;
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}

// --- kept pictures ---------------------------------------------------------------------------------------------

function Gallery({ pictures, onOpen }) {
  return html`<section aria-label="Kept pictures">
    <h2>Kept pictures</h2>
    ${pictures.length === 0
      ? html`<p class="hint">Press <kbd>Enter</kbd> to keep the picture that you see. They stay in this browser.</p>`
      : html`<div class="gallery">
          ${pictures.map(
            (one) => html`<button type="button" key=${one.id} title=${one.request.prompts[0]} onClick=${() => onOpen(one)}>
              <img src=${one.image} alt=${one.request.prompts[0]} />
            </button>`,
          )}
        </div>`}
  </section>`;
}

function Detail({ picture, onUse, onDelete, onClose }) {
  const dialog = useRef(null);
  const [copied, setCopied] = useState('');
  useEffect(() => dialog.current.showModal(), []);
  const { recipe, request, image } = picture;
  const copy = async (name, text) => {
    await toClipboard(text, dialog.current);
    setCopied(name);
  };
  const facts = {
    prompt: recipe.prompt, model: recipe.model, steps: `${recipe.steps}, ${recipe.solver}`, guidance: recipe.guidance_scale,
    seed: recipe.seed, size: `${recipe.width} x ${recipe.height}`,
    LoRAs: recipe.lora.map((one) => `${one.file} ${one.weight}`).join(', ') || 'none',
  };
  return html`<dialog ref=${dialog} onClose=${onClose} aria-label="A kept picture">
    <div class="detail">
      <img src=${image} alt=${recipe.prompt} />
      <div>
        <dl>${Object.entries(facts).map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}</dl>
        <div class="actions">
          <button type="button" class="main" onClick=${() => onUse(recipe)}>Use its settings</button>
          <button type="button" onClick=${() => copy('command', command(request))}>
            ${copied === 'command' ? 'Copied' : 'Copy as command'}
          </button>
          <button type="button" onClick=${() => copy('python', python(request))}>
            ${copied === 'python' ? 'Copied' : 'Copy as Python'}
          </button>
          <a class="button" href=${image} download=${`${recipe.prompt.slice(0, 40)}-${recipe.seed}.png`}>Save</a>
          <button type="button" onClick=${() => onDelete(picture.id)}>Delete</button>
          <button type="button" onClick=${() => dialog.current.close()}>Close</button>
        </div>
      </div>
    </div>
  </dialog>`;
}

// Browsers give the clipboard to https and localhost alone; elsewhere the text is selected in `place`, and copied.
async function toClipboard(text, place) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement('textarea');
  area.value = text;
  place.append(area);
  area.select();
  document.execCommand('copy');
  area.remove();
}

function AskKey({ onKey }) {
  const [key, change] = useState('');
  const [wrong, setWrong] = useState(false);
  return html`<form
    class="card"
    onSubmit=${async (event) => {
      event.preventDefault();
      setKey(key);
      await onKey();
      setWrong(true); // with the right key this form is gone
    }}
  >
    <label
      >This server asks for a key
      <input type="password" value=${key} onInput=${(e) => change(e.target.value)} autofocus
    /></label>
    ${wrong && html`<p class="message" role="alert">The server does not take this key.</p>`}
    <p><button class="main">Go on</button></p>
  </form>`;
}

// --- all of it -------------------------------------------------------------------------------------------------

function App() {
  const [offer, setOffer] = useState(null);
  const [loras, setLoras] = useState([]);
  const [settings, setSettings] = useState(stored(SETTINGS, START));
  const [image, setImage] = useState(null);
  const [pictures, setPictures] = useState([]);
  const [opened, setOpened] = useState(null);
  const [problem, setProblem] = useState(null);
  const [notice, setNotice] = useState(null); // why a picture's settings do not draw it again
  const [waiting, setWaiting] = useState(null); // the request whose picture is kept as soon as it is drawn
  const [dropping, setDropping] = useState(false);
  const prompt = useRef(null);

  const change = (part) => {
    setSettings((old) => ({ ...old, ...part }));
    setNotice(null);
  };
  const load = () =>
    askOffer()
      .then((found) => {
        setOffer(found);
        setSettings((old) => ({ ...old, model: offered(old.model, found) }));
        setLoras(found.loras.map((name) => ({ name, weight: found.plugged.find((one) => one.name === name)?.weight ?? 0 })));
        setProblem(null);
      })
      .catch(setProblem);
  useEffect(load, []);
  useEffect(() => all().then(setPictures, () => {}), []);
  useEffect(() => localStorage.setItem(SETTINGS, JSON.stringify(settings)), [settings]);
  useEffect(() => {
    if (!(problem instanceof Gone)) return undefined;
    const timer = setInterval(async () => (await alive()) && load(), RETRY_MS);
    return () => clearInterval(timer);
  }, [problem]);
  useEffect(() => {
    const onKey = (event) => {
      if (event.key !== '/' || /INPUT|TEXTAREA/.test(document.activeElement.tagName)) return;
      event.preventDefault();
      prompt.current?.focus();
    };
    addEventListener('keydown', onKey);
    return () => removeEventListener('keydown', onKey);
  }, []);

  const ready = offer !== null && settings.prompt.trim() !== '' && !(problem instanceof Gone);
  const plugged = loras.filter((one) => one.weight > 0 && fitting(settings.model, offer).includes(one.name));
  const request = requestFor(settings, plugged, image);
  const baseline = baselineOf(request, offer?.accelerations ?? []);
  const shown = usePicture(request, ready, setProblem);
  const other = usePicture(baseline, ready && settings.compare && shown.busy === 0, setProblem);

  const text = JSON.stringify(request);
  const keepShown = async () => {
    if (!ready) return;
    if (JSON.stringify(shown.request) !== text) return setWaiting(text);
    setWaiting(null);
    const kept = { image: shown.image, recipe: shown.entry.recipe, request: { ...shown.request, image: Boolean(shown.request.image) } };
    setPictures([await keep(kept), ...pictures]);
  };
  useEffect(() => void (waiting === text && shown.busy === 0 && keepShown()), [shown.entry]);

  if (problem instanceof ApiError && problem.status === 401) return html`<main><${AskKey} onKey=${load} /></main>`;
  if (!offer) return html`<${Problem} problem=${problem} />`;

  const use = (recipe) => {
    const wish = requestOf(recipe);
    change({
      prompt: wish.prompts[0], model: offered(recipe.model, offer), steps: Math.min(wish.steps ?? 4, offer.limits.steps), seed: wish.seed ?? 0, guidance: wish.guidance_scale ?? '',
      negative: wish.negative_prompt ?? '', width: wish.width ?? '', height: wish.height ?? '',
      strength: wish.strength ?? settings.strength, solver: offer.solvers.includes(wish.solver) ? wish.solver : 'auto',
    });
    if (!recipe.image) setImage(null);
    const missing = lacking(recipe, offer, image);
    setNotice(missing.length ? { message: `This page cannot draw that picture again. It lacks ${missing.join(', ')}.` } : null);
    const weights = Object.fromEntries((wish.loras ?? []).map((one) => [one.slice(0, one.lastIndexOf(':')), +one.slice(one.lastIndexOf(':') + 1)]));
    setLoras(loras.map(({ name }) => ({ name, weight: weights[name] ?? 0 })));
    setOpened(null);
  };
  const drop = async (event) => {
    event.preventDefault();
    setDropping(false);
    const file = event.dataTransfer.files[0];
    if (!file) return;
    const recipe = await recipeIn(file);
    if (recipe) use(recipe);
    else if (/^image\/(png|jpeg|webp)$/.test(file.type)) setImage(await dataUrl(file));
    else setProblem(new Error(`${file.name} is no picture`));
  };
  const aspect = shown.entry ? `${shown.entry.recipe.width} / ${shown.entry.recipe.height}` : '1';
  const speed = other.ms && shown.ms && other.busy === 0 ? `, ${(other.ms / shown.ms).toFixed(1)} times as long` : '';

  return html`<div
    class=${dropping ? 'dropping' : ''}
    onDragOver=${(event) => {
      event.preventDefault();
      setDropping(true);
    }}
    onDragLeave=${() => setDropping(false)}
    onDrop=${drop}
  >
    <header>
      <h1>few<span>step</span></h1>
      <nav>
        <button type="button" aria-pressed=${settings.compare} onClick=${() => change({ compare: !settings.compare })}>Compare</button>
        <button type="button" onClick=${turnTheme} aria-label="Light or dark">◐</button>
      </nav>
    </header>
    <main>
      <${Controls} ...${{ settings, change, offer, loras, plugged, setLoras, image, setImage }} />
      <section>
        <${Problem} problem=${problem ?? notice} />
        <div class="prompt">
          <textarea
            ref=${prompt}
            rows="2"
            aria-label="Prompt"
            placeholder="What to draw"
            value=${settings.prompt}
            onInput=${(e) => change({ prompt: e.target.value })}
            onKeyDown=${(e) => {
              if (e.key === 'Enter' && !e.shiftKey) {
                e.preventDefault();
                keepShown();
              }
            }}
          ></textarea>
          <button type="button" class="main" onClick=${keepShown}>${waiting === text && !problem ? 'Keeping …' : 'Keep'}</button>
        </div>
        <div class=${settings.compare ? 'stage two' : 'stage'}>
          <${Shown} title=${`${settings.steps} step${settings.steps === 1 ? '' : 's'}`} shown=${shown} aspect=${aspect} />
          ${settings.compare && html`<${Shown} title=${`DDIM, 32 steps${speed}`} shown=${other} aspect=${aspect} />`}
        </div>
        <${Gallery} pictures=${pictures} onOpen=${setOpened} />
        <p class="hint">Drop a picture of fewstep here to load its settings, or another picture to start from it. <kbd>/</kbd> goes to the prompt.</p>
      </section>
    </main>
    ${opened &&
    html`<${Detail}
      picture=${opened}
      onUse=${use}
      onClose=${() => setOpened(null)}
      onDelete=${async (id) => {
        await remove(id);
        setPictures(pictures.filter((one) => one.id !== id));
        setOpened(null);
      }}
    />`}
  </div>`;
}

function Problem({ problem }) {
  if (!problem) return null;
  const text =
    problem instanceof Gone ? 'The server does not answer. Start it again with “fewstep serve”; this page then goes on by itself.' : problem.message;
  return html`<p class="message" role="alert">${text}</p>`;
}

function turnTheme() {
  const dark = getComputedStyle(document.documentElement).colorScheme === 'dark' || (!document.documentElement.dataset.theme && matchMedia('(prefers-color-scheme: dark)').matches);
  document.documentElement.dataset.theme = dark ? 'light' : 'dark';
  localStorage.setItem(THEME, JSON.stringify({ theme: document.documentElement.dataset.theme }));
}

const { theme } = stored(THEME, {});
if (theme) document.documentElement.dataset.theme = theme;
const place = document.getElementById('app');
place.replaceChildren();
render(html`<${App} />`, place);
