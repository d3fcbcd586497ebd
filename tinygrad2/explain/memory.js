// -- the memory of the step --------------------------------------------------------------------------------------------

(() => {
  const M = DATA.memory, events = M.events, N = events.length;
  const buffers = M.buffers.map(([bytes, what, made, dies, keepers, leased, offset]) => ({bytes, what, made, dies, keepers, leased, offset}));
  const e = section("memory", "The memory of the step over time", `Time runs from left to right, op by op, forward and then backward. A band is an array: `
    + "from the op that made it to the op in which it was freed, as high as it is large. Where it lies says nothing, bands fill gaps from below. "
    + `Weights, gradients and Adam's moments, ${size(M.fixed)}, are there all the time and not drawn; nor is what an op allocates and frees within itself.`);
  const card = element(e, "div", {class: "card"});
  const kinds = [
    ["kept for backward", "--accent", b => b.keepers.length && !b.leased],
    ["a result that nobody keeps", "--second", b => !b.keepers.length && b.what === "result"],
    ["a gradient on its way", "--third", b => b.what.startsWith("gradient")],
    ["work space, kept from step to step", "--fourth", b => b.leased],
  ];
  const kind = b => kinds.findIndex(([, , is]) => is(b));
  const legend = element(card, "div", {class: "legend"});
  kinds.forEach(([name, colour], k) => {
    if (!buffers.some(b => kind(b) === k)) return;
    const item = element(legend, "span");
    element(item, "i", {style: `background: var(${colour})`});
    item.append(name);
  });
  const op = i => `${events[i][1]}${events[i][2] ? ` in ${events[i][2]}` : ""}`, when = i => `${events[i][0]} of ${op(i)}`;
  const describe = b => `${size(b.bytes)}: ${b.what === "input" ? "ids, from outside, first used in" : b.what === "saved" ? "what is saved for backward, made in" : `${b.what}, made in`} ${when(b.made)}. `
    + (b.keepers.length ? `Kept for backward by ${b.keepers.map(op).join(", and by ")}. ` : "Nobody keeps it. ")
    + (b.dies === null ? (b.leased ? "Its memory is used again in the next step." : "It is there after the step.") : `Freed in ${when(b.dies)}.`);

  const svg = element(card, "svg", {width: "100%", tabindex: "0", role: "group", "aria-label": "bands of memory; the arrow keys go from one to the next", style: "display: block; touch-action: pan-y"});
  const line = element(card, "p", {"aria-live": "polite", id: "band"});
  line.style.minHeight = "4.4em";
  const top = Math.max(...buffers.map(b => b.offset + b.bytes), ...M.alive, 1) * 1.04, first = events.findIndex(([phase]) => phase === "backward");
  const H = 330, L = 58, B = 22;
  let rects = [], chosen = -1;
  const choose = i => {
    if (rects[chosen]) rects[chosen].setAttribute("stroke", "var(--card)");
    chosen = i;
    if (i < 0) return;
    rects[i].setAttribute("stroke", "var(--ink)");
    rects[i].parentNode.append(rects[i]);
    line.textContent = describe(buffers[i]);
  };
  const draw = () => {
    const W = Math.max(280, svg.clientWidth || 800);
    svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
    svg.setAttribute("height", H);
    svg.replaceChildren();
    const x = i => L + (W - L - 4) * i / N, y = bytes => (H - B) * (1 - bytes / top) + 4;
    for (let k = 0; k <= 4; k++) {
      const bytes = top / 1.04 * k / 4;
      element(svg, "line", {x1: L, x2: W - 4, y1: y(bytes), y2: y(bytes), stroke: "var(--grid)"});
      element(svg, "text", {x: L - 5, y: y(bytes) + 4, "text-anchor": "end", class: "pale"}, size(bytes).replace(" bytes", " B"));
    }
    const bands = element(svg, "g");
    rects = buffers.map((b, i) => {
      const end = b.dies === null ? N : b.dies + 1;
      const rect = element(bands, "rect", {x: x(b.made), y: y(b.offset + b.bytes), width: Math.max(1, x(end) - x(b.made)), height: Math.max(.6, y(b.offset) - y(b.offset + b.bytes)),
                                           fill: `var(${(kinds[kind(b)] || kinds[1])[1]})`, "fill-opacity": .8, stroke: "var(--card)", "stroke-width": 1, style: "cursor: pointer"});
      rect.onclick = () => choose(i);
      rect.onpointerenter = event => { if (event.pointerType === "mouse") choose(i); };
      return rect;
    });
    const steps = M.alive.map((bytes, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(bytes).toFixed(1)}L${x(i + 1).toFixed(1)} ${y(bytes).toFixed(1)}`).join("");
    element(svg, "path", {d: steps, fill: "none", stroke: "var(--ink)", "stroke-width": 1.5, "pointer-events": "none"});
    element(svg, "line", {x1: x(first), x2: x(first), y1: 0, y2: H - B + 4, stroke: "var(--ink)", "stroke-dasharray": "3 3"});
    element(svg, "text", {x: (x(0) + x(first)) / 2, y: H - 4, "text-anchor": "middle"}, "forward");
    element(svg, "text", {x: (x(first) + x(N)) / 2, y: H - 4, "text-anchor": "middle"}, "backward");
    choose(chosen);
  };
  svg.onkeydown = event => {
    const by = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
    if (!by) return;
    event.preventDefault();
    choose((chosen + by + buffers.length) % buffers.length);
  };
  let last = 0;
  new ResizeObserver(() => { if (svg.clientWidth !== last) { last = svg.clientWidth; draw(); } }).observe(svg);
  draw();
  choose(buffers.indexOf(buffers.reduce((a, b) => b.bytes > a.bytes ? b : a)));
  const most = Math.max(...M.alive);
  element(card, "p", {class: "note"}, `The line is the sum of all bands; its highest point is ${size(most)}, in ${when(M.alive.indexOf(most))}. Point at a band, touch it, or go through them with the arrow keys.`);

  const beside = element(e, "div", {class: "card", id: "plan"});
  element(beside, "h3", {}, "Plan beside fact");
  const body = table(beside, ["", ">planned", ">in this step", ">fact / plan"]);
  for (const [name, planned, fact] of M.beside) row(body, [name, {n: size(planned)}, {n: size(fact)}, p(fact / planned)]);
  element(beside, "p", {class: "note"}, "The plan is arithmetic, made before anything runs (python -m tinygrad2 plan). An array that several ops keep is counted "
    + "in the layer of the first." + (DATA.pulls ? " Outside of the layers the plan allows three arrays of the width of the model for each token." : ""));
  const details = element(e, "details", {class: "card"}), holder = element(details, "div");
  element(details, "summary", {}, `all ${buffers.length} arrays, the largest first`);
  details.ontoggle = () => {
    if (!details.open || holder.children.length) return;
    const list = table(holder, [">size", "what", "made in", "kept by", "freed in"]);
    for (const i of largest(buffers.map(b => b.bytes), buffers.length)) {
      const b = buffers[i];
      row(list, [{n: size(b.bytes)}, b.leased ? "work space" : b.what, when(b.made), b.keepers.map(op).join(", ") || "–", b.dies === null ? "–" : when(b.dies)]);
    }
  };
})();
