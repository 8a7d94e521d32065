// A canvas to draw a start picture on.

import { html, useEffect, useRef, useState } from '/page/vendor/htm-preact.js';

const SIDE = 256;
const COLOURS = ['#1a1a1a', '#e03131', '#f08c00', '#ffd43b', '#2f9e44', '#1c7ed6', '#9c36b5', '#8d5524', '#ffffff'];

export function Sketch({ onChange }) {
  const canvas = useRef(null);
  const last = useRef(null);
  const [colour, setColour] = useState(COLOURS[1]);
  const [width, setWidth] = useState(18);

  const clear = () => {
    const pen = canvas.current.getContext('2d');
    pen.fillStyle = 'white';
    pen.fillRect(0, 0, SIDE, SIDE);
    onChange(null);
  };
  useEffect(clear, []);

  const at = (event) => {
    const box = canvas.current.getBoundingClientRect();
    return [((event.clientX - box.left) * SIDE) / box.width, ((event.clientY - box.top) * SIDE) / box.height];
  };
  const line = (event) => {
    if (!last.current) return;
    const pen = canvas.current.getContext('2d');
    const next = at(event);
    pen.strokeStyle = colour;
    pen.lineWidth = width;
    pen.lineCap = 'round';
    pen.beginPath();
    pen.moveTo(...last.current);
    pen.lineTo(...next);
    pen.stroke();
    last.current = next;
    onChange(canvas.current.toDataURL('image/png'));
  };
  const begin = (event) => {
    canvas.current.setPointerCapture(event.pointerId);
    last.current = at(event);
    line(event);
  };

  return html`<div class="sketch">
    <canvas
      ref=${canvas}
      width=${SIDE}
      height=${SIDE}
      aria-label="Sketch"
      onPointerDown=${begin}
      onPointerMove=${line}
      onPointerUp=${() => (last.current = null)}
    ></canvas>
    <div class="row colours" role="radiogroup" aria-label="Colour">
      ${COLOURS.map(
        (one) => html`<button
          type="button"
          role="radio"
          aria-checked=${one === colour}
          aria-label=${one}
          style=${{ background: one }}
          onClick=${() => setColour(one)}
        ></button>`,
      )}
    </div>
    <div class="row">
      <label class="grow"
        >Brush <input type="range" min="2" max="60" value=${width} onInput=${(e) => setWidth(+e.target.value)}
      /></label>
      <button type="button" onClick=${clear}>Clear</button>
    </div>
  </div>`;
}
