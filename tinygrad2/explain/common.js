"use strict";
// -- numbers -----------------------------------------------------------------------------------------------------------

// A value to read: `digits` significant ones; null is what JSON cannot say.
function number(v, digits = 4) {
  if (v === null || v === undefined) return "not finite";
  const size = Math.abs(v);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return v.toExponential(digits - 1).replace(/\.?0+e/, "e").replace("e+", "e");
  return (+v.toPrecision(digits)).toLocaleString("en", {maximumFractionDigits: 10});
}
// A probability or a share: 12.3%, and small ones not as 0.0%.
function percent(p) {
  if (p === null) return "not finite";
  if (p > 0 && p < 5e-4) return "<0.1%";
  return (100 * p).toFixed(1) + "%";
}
function bytesOf(text) {
  return Uint8Array.from(atob(text), c => c.charCodeAt(0));
}
// Numbers from 0 to 1, in steps of 1/65535.
function fractions(text) {
  const bytes = bytesOf(text), values = new Float32Array(bytes.length / 2);
  for (let i = 0; i < values.length; i++) values[i] = (bytes[2 * i] + 256 * bytes[2 * i + 1]) / 65535;
  return values;
}
// n rows of numbers, each in steps of 1/127 of its largest.
function signed({scale, values}) {
  const whole = new Int8Array(bytesOf(values).buffer), width = whole.length / scale.length;
  return scale.map((s, row) => Array.from(whole.subarray(row * width, (row + 1) * width), v => v / 127 * s));
}
// The positions of the n largest, the largest first.
function largest(values, n) {
  return Array.from(values.keys()).sort((a, b) => values[b] - values[a] || a - b).slice(0, n);
}
function highest(values) {
  return values.reduce((a, b) => Math.max(a, b), 0);                    // Math.max(...values) has a limit
}
// How strong the colour of a norm is, from 0 to 1: logarithmic, down to a ten-thousandth of the largest. What is smaller
// has a colour as well; only 0 has none.
function shade(v, most) {
  return v > 0 ? Math.max(.2, 1 + Math.log10(v / most) / 4) : 0;
}
function size(bytes) {
  return bytes >= 1e6 ? number(bytes / 1e6, 3) + " MB" : bytes >= 1e3 ? number(bytes / 1e3, 3) + " kB" : bytes + " bytes";
}

// -- elements ----------------------------------------------------------------------------------------------------------

addEventListener("error", event => {
  const line = document.getElementById("error") || element(document.body, "p", {id: "error", role: "alert"});
  document.body.prepend(line);
  line.textContent = "This page failed to draw itself: " + event.message;
});
const SVG = ["svg", "g", "path", "line", "text", "circle", "rect", "title"];
function element(parent, name, attributes = {}, text) {
  const e = SVG.includes(name) ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const key in attributes) e.setAttribute(key, attributes[key]);
  if (text !== undefined) e.textContent = text;
  if (parent) parent.appendChild(e);
  return e;
}
function section(id, title, text) {
  const e = element(document.getElementById("main"), "section", {id});
  element(e, "h2", {}, title);
  if (text) element(e, "p", {}, text);
  return e;
}
function table(parent, heads, attributes = {}) {
  const e = element(element(parent, "div", {class: "wide"}), "table", attributes);
  if (heads) {
    const row = element(element(e, "thead"), "tr");
    for (const head of heads) element(row, "th", head.startsWith(">") ? {class: "n", scope: "col"} : {scope: "col"}, head.replace(/^>/, ""));
  }
  return element(e, "tbody");
}
// Cells: a text; a number in its own words, right-aligned; or a function that fills the cell.
function row(body, cells, attributes = {}) {
  const e = element(body, "tr", attributes);
  for (const cell of cells) {
    if (typeof cell === "function") cell(element(e, "td"));
    else if (typeof cell === "object" && cell !== null) element(e, "td", {class: "n"}, cell.n);
    else element(e, "td", {}, cell);
  }
  return e;
}
const n = (v, digits) => ({n: number(v, digits)}), p = v => ({n: percent(v)});
const text = id => DATA.texts[id];
const quoted = id => `“\u2068${text(id)}\u2069”`;                       // isolated: it may be written from right to left
const token = id => cell => element(cell, "span", {class: "token"}, text(id));
const bar = (share, kind = "") => cell => {
  element(element(cell, "div", {class: "meter"}), "span", {class: "bar " + kind, style: `width: ${Math.max(.5, 100 * Math.min(1, share || 0))}%`});
};
const tint = (share, colour = "--tint") => `background: rgba(var(${colour}), ${(.6 * Math.sqrt(Math.max(0, share))).toFixed(3)})`;

// -- canvases: a value is a colour between the paper's and another, and they follow light and dark ---------------------------

const painters = [];
function colour(name) {
  const probe = element(document.body, "span", {style: `color: var(${name})`}), [r, g, b] = getComputedStyle(probe).color.match(/[\d.]+/g);
  probe.remove();
  return [+r, +g, +b];
}
// `value(x, y)`: from -1 (second colour) to 1 (accent); 0, and null, is the paper.
function heat(canvas, width, height, value) {
  canvas.width = width;
  canvas.height = height;
  const paint = () => {
    const context = canvas.getContext("2d"), image = context.createImageData(width, height);
    const [paper, more, less] = ["--paper", "--accent", "--second"].map(colour);
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
      const v = value(x, y) || 0, to = v < 0 ? less : more, share = Math.min(1, Math.abs(v)), at = 4 * (y * width + x);
      for (let c = 0; c < 3; c++) image.data[at + c] = paper[c] + share * (to[c] - paper[c]);
      image.data[at + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  };
  paint();
  return paint;
}
function heatMap(parent, attributes, width, height, value) {
  const canvas = element(parent, "canvas", {role: "img", ...attributes});
  painters.push(heat(canvas, width, height, value));
  return canvas;
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => painters.forEach(paint => paint()));

// -- the head of the page and the bar of tokens -------------------------------------------------------------------------------

const T = DATA.tokens.length;
let pinned = T - 1, shown = -1;
const listeners = [];
// Call `draw(t)` now, and whenever another position is chosen.
function follow(draw) {
  listeners.push(draw);
}
function show(t) {
  if (t === shown) return;
  shown = t;
  for (const [i, button] of [...document.querySelectorAll("#tokens button")].entries()) {
    button.setAttribute("aria-pressed", String(i === t));
    button.tabIndex = i === t ? 0 : -1;
  }
  for (const draw of listeners) draw(t);
}
function pin(t) {
  pinned = t;
  show(t);
}
function head(title, lines) {
  const header = document.getElementById("header");
  element(header, "h1", {}, title);
  element(header, "p", {class: "note"}, `${DATA.weights}: ${DATA.parameters.toLocaleString("en")} parameters; ${DATA.describe}.`);
  for (const line of lines) element(header, "p", {}, line);
}
// `under(t)`: the small line below a token.
function tokenBar(under) {
  const nav = document.getElementById("tokens");
  DATA.tokens.forEach((id, t) => {
    const button = element(nav, "button", {type: "button", "aria-pressed": "false", "aria-label": `position ${t}, token ${text(id)}, id ${id}`});
    element(button, "span", {class: "token"}, text(id));
    element(button, "small", {}, under(t));
    button.onclick = () => pin(t);
    button.onfocus = () => { if (button.matches(":focus-visible")) pin(t); };
    button.onpointerenter = event => { if (event.pointerType === "mouse") show(t); };
  });
  nav.onpointerleave = () => show(pinned);
  nav.onkeydown = event => {
    const to = {ArrowLeft: shown - 1, ArrowRight: shown + 1, ArrowUp: shown - 1, ArrowDown: shown + 1, Home: 0, End: T - 1}[event.key];
    if (to === undefined) return;
    event.preventDefault();
    pin(Math.max(0, Math.min(T - 1, to)));
    nav.children[shown].focus();
  };
}
// Draw everything for the position in the address (#token=5), else the last one.
function begin() {
  const wanted = +(new URLSearchParams(location.hash.slice(1)).get("token") ?? T - 1);
  pin(Number.isInteger(wanted) && wanted >= 0 && wanted < T ? wanted : T - 1);
  document.body.dataset.drawn = "yes";
}
