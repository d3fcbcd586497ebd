const where = t => `position ${t}, ${quoted(DATA.tokens[t])}`, target = t => quoted(DATA.targets[t]);
const shape = sizes => sizes.length ? `(${sizes.join(", ")})` : "()";
const O = DATA.optimizer;

head("One training step, taken apart", [
  `Each of the ${T} positions is asked for the token that follows it; the loss ${number(DATA.loss, 5)} is the mean of their losses, in nats. `
  + `From there gradients walked back to every tensor and every parameter. The step ran without dropout.`,
  "Choose a position below: by pointing, by touching, or with Tab and the arrow keys. The small number is its loss."]);
tokenBar(t => number(DATA.losses[t], 3));

// -- losses ------------------------------------------------------------------------------------------------------------

(() => {
  const e = section("losses", "The loss of each position", "Minus the logarithm of the probability that the model gave to the token that follows. "
    + `A model that knows nothing has ln ${DATA.config.vocab_size} = ${number(Math.log(DATA.config.vocab_size))}.`);
  const card = element(e, "div", {class: "card"}), columns = element(card, "div", {class: "columns"}), most = Math.max(...DATA.losses);
  const bars = DATA.losses.map((loss, t) => {
    const button = element(columns, "button", {type: "button", tabindex: "-1", style: `height: ${Math.max(1, 100 * loss / most)}%`,
                                               title: `${where(t)}: ${number(loss)}`, "aria-label": `loss of ${where(t)}: ${number(loss)}`});
    button.onclick = () => pin(t);
    return button;
  });
  const line = element(card, "p");
  const mean = DATA.losses.reduce((a, b) => a + b, 0) / T;
  element(card, "p", {class: "note"}, `The bars begin at 0; the tallest is ${number(most)}. Their mean is ${number(mean, 6)}; the step's own loss, in float32, ${number(DATA.loss, 6)}.`);
  follow(t => {
    bars.forEach((one, i) => one.setAttribute("aria-pressed", String(i === t)));
    const loss = DATA.losses[t];
    line.textContent = `After ${where(t)} comes ${target(t)}: probability ${percent(Math.exp(-loss))}, loss ${number(loss)}, `
      + `${percent(loss / (T * mean))} of the sum.`;
  });
})();

// -- the graph ---------------------------------------------------------------------------------------------------------

const dialog = element(document.body, "dialog", {"aria-label": "derivation"});
function derive(op) {
  const {text: words, file} = DATA.ops[op];
  dialog.replaceChildren();
  element(dialog, "h3", {}, `${op}: ${file}`);
  element(dialog, "pre", {}, words || "(the text of this op was removed by python -OO)");
  const close = element(dialog, "button", {type: "button", class: "plain"}, "close");
  close.onclick = () => dialog.close();
  dialog.showModal();
}
const opLink = op => cell => {
  const button = element(cell, "button", {type: "button", class: "link", title: "formula and derivation of its gradient"}, op);
  button.onclick = event => { event.stopPropagation(); derive(op); };
};
(() => {
  const e = section("graph", "The graph of the step", "One line for each op, in the order of forward; backward walks it from below. Lines on the "
    + "left join an op with those that use its result. On the right the norm of its result and of the gradient of the loss with respect to "
    + "that. Choose an op to read its formula and how its gradient is derived.");
  const H = 46, card = element(e, "div", {class: "card"}), legend = element(card, "div", {class: "node"});
  const lanes = [], arcs = [];
  DATA.nodes.forEach(({inputs}, i) => {
    for (const from of new Set(inputs.map(input => input[2]).filter(Array.isArray).map(source => source[0]))) {
      if (from === i - 1) { arcs.push([from, i, -1]); continue; }
      let lane = 0;
      while ((lanes[lane] ?? -1) > from) lane++;
      lanes[lane] = i;
      arcs.push([from, i, lane]);
    }
  });
  const left = 18 + 9 * lanes.length;
  legend.style.cssText = `height: auto; padding-left: ${left}px`;
  element(legend, "div", {}).append("op, and its parameters");
  element(legend, "div", {class: "n"}, "value");
  element(legend, "div", {class: "n"}, "gradient");
  const graph = element(card, "div", {class: "graph", style: `padding-left: ${left}px`});
  const svg = element(graph, "svg", {width: left, height: H * DATA.nodes.length, "aria-hidden": "true"});
  const y = i => H * (i + .5), x = left - 9;
  for (const [from, to, lane] of arcs) {
    const d = lane < 0 ? `M${x} ${y(from)}V${y(to)}` : `M${x} ${y(from)}C${x - 9 * lane - 10} ${y(from) + 14},${x - 9 * lane - 10} ${y(from) + 14},${x - 9 * lane - 10} ${y(from) + 30}`
      + `V${y(to) - 30}C${x - 9 * lane - 10} ${y(to) - 14},${x - 9 * lane - 10} ${y(to) - 14},${x} ${y(to)}`;
    element(svg, "path", {d, fill: "none", stroke: lane < 0 ? "var(--pale)" : "var(--accent)", "stroke-width": 1.5});
  }
  DATA.nodes.forEach((node, i) => {
    element(svg, "circle", {cx: x, cy: y(i), r: 4, fill: "var(--ink)"});
    const line = element(graph, "div", {class: "node"}), name = element(line, "div");
    opLink(node.op)(name);
    const shapes = node.outputs.map(out => shape(out.shape)), alike = shapes.every(one => one === shapes[0]);
    name.append(" " + (shapes.length > 1 && alike ? `${shapes.length} × ${shapes[0]}` : shapes.join(", ")));
    const parameters = node.inputs.filter(input => typeof input[2] === "string").map(input => node.layer ? input[2].replace(node.layer + ".", "") : input[2]);
    element(name, "small", {title: node.kernel}, [node.layer || "the model itself", ...parameters].join(" · "));
    element(line, "div", {class: "n"}, node.outputs.map(out => number(out.norm, 3)).join("\n"));
    element(line, "div", {class: "n"}, node.outputs.map(out => out.grad === null ? "–" : number(out.grad, 3)).join("\n"));
  });
  const last = DATA.nodes[DATA.nodes.length - 1].op;
  element(card, "p", {class: "note"}, `Of an op with several results the norms stand below each other. The gradient of ${last}, the loss itself, is 1.`);
})();

// -- gradients of all tensors, token by token --------------------------------------------------------------------------

(() => {
  const e = section("gradients", "The gradient of every tensor, token by token", "How strongly the loss would react to a change of each tensor at each "
    + "position: norms of the gradient. Colour is logarithmic, from the largest norm down to a ten-thousandth of it; what is smaller has the palest colour, "
    + "and only a gradient that is exactly 0 has none.");
  const card = element(e, "div", {class: "card"}), body = table(card, ["tensor", ">whole", ">here", "all positions"], {class: "strips"});
  const rows = DATA.nodes.flatMap(node => node.outputs.map((out, i) => ({node, out, i})).filter(({out}) => out.tokens));
  const most = highest(rows.flatMap(({out}) => out.tokens)) || 1;
  const cells = rows.map(({node, out, i}) => {
    let here;
    row(body, [cell => { cell.append(`${node.layer ? node.layer + ": " : ""}`); opLink(node.op)(cell); if (node.outputs.length > 1) cell.append(` result ${i}`); },
               n(out.grad, 3), cell => { here = cell; cell.className = "n"; },
               cell => heatMap(cell, {class: "row", "aria-label": `gradient of ${node.op} in ${node.layer} at all positions`}, T, 1,
                               at => shade(out.tokens[at], most))]);
    return [here, out.tokens];
  });
  follow(t => cells.forEach(([cell, tokens]) => { cell.textContent = number(tokens[t], 3); }));
})();

// -- which target pulls which position ---------------------------------------------------------------------------------

if (DATA.pulls) (() => {
  const {targets, points} = DATA.pulls, all = targets.length === T;
  const e = section("pulls", "Which target pulled which position", "The gradient of the stream is a sum of parts, one for the loss of each target. "
    + "In the square a row is a target (the token that follows that position), a column the position that its loss pulls at; a target pulls at no later position. "
    + "Colour is logarithmic, down to a ten-thousandth of the largest norm; what is smaller has the palest."
    + (all ? "" : ` For the size of this model ${targets.length} of the ${T} targets are followed, evenly spread.`));
  const card = element(e, "div", {class: "card"}), buttons = element(card, "div", {class: "chips", role: "group", "aria-label": "where in the model"});
  const holder = element(card, "div", {class: "square"}), title = element(card, "h3"), chips = element(card, "div", {class: "chips"});
  const title2 = element(card, "h3"), holder2 = element(card, "div");
  const name = layer => layer ? `after ${layer}` : "embeddings";
  const most = points.map(({norms}) => highest(norms.flat()) || 1), share = (v, k) => shade(v, most[k]);
  let chosen = 0, canvas = null, paint = () => {};
  painters.push(() => paint());
  const draw = t => {
    const {layer, norms} = points[chosen], row_ = targets.indexOf(t);
    title.textContent = row_ < 0 ? `The target of ${where(t)} is not among those followed`
      : `The loss of ${target(t)}, the target of ${where(t)}, pulls at (norm of its gradient, ${name(layer)})`;
    chips.replaceChildren();
    if (row_ >= 0) norms[row_].forEach((v, i) => {
      const chip = element(chips, "div", {class: "chip", style: tint(share(v, chosen) ** 2), "aria-current": String(i === t)});
      element(chip, "span", {class: "token"}, text(DATA.tokens[i]));
      element(chip, "small", {}, number(v, 2));
    });
    const column = targets.map((s, i) => s >= t ? norms[i][t] : 0), sum = column.reduce((a, b) => a + b, 0);
    title2.textContent = `The stream at ${where(t)} is pulled most by`;
    holder2.replaceChildren();
    const body = table(holder2, ["target", ">of position", ">norm", ">share", ""], {class: "bars"});
    for (const i of largest(column, 8).filter(i => column[i] > 0))
      row(body, [cell => element(cell, "span", {class: "token"}, text(DATA.targets[targets[i]])), n(targets[i]), n(column[i], 3), p(column[i] / sum), bar(column[i] / sum)]);
    element(holder2, "p", {class: "note"}, "Share of the sum of the norms. The parts are vectors and may cancel, so the norm of their sum is smaller.");
  };
  const choose = k => {
    chosen = k;
    [...buttons.children].forEach((button, i) => button.setAttribute("aria-pressed", String(i === k)));
    if (!canvas) canvas = element(holder, "canvas", {role: "img"});
    canvas.setAttribute("aria-label", `norms of gradients, ${name(points[k].layer)}`);
    paint = heat(canvas, T, targets.length, (t, i) => t <= targets[i] ? share(points[k].norms[i][t], k) : 0);
    if (shown >= 0) draw(shown);
  };
  points.forEach(({layer}, k) => { element(buttons, "button", {type: "button", class: "plain"}, name(layer)).onclick = () => choose(k); });
  choose(chosen);
  follow(draw);
})();

// -- parameters --------------------------------------------------------------------------------------------------------

(() => {
  const run = O.run, lr = `a learning rate of ${number(O.lr)}${!run ? "" : run.scheduled ? `, which its schedule has for step ${run.step + 1},` : ", as --lr says,"}`;
  const adam = run ? `This is the next step of your run, on this text in place of a batch: Adam with the moments of its ${run.t.toLocaleString("en")} steps so far, from ${run.path}, `
      + `${lr} and weight decay ${number(O.weight_decay)} on matrices. ${run.frozen ? `${run.frozen} frozen parameters do not move. ` : ""}`
    : `Adam with ${lr}, weight decay ${number(O.weight_decay)} on matrices, and moments of zero, so this is the first step of a new training and not that of the run these weights are from: `
      + "nearly every element moves by the learning rate, however small its gradient, and one whose gradient is exactly 0 moves by decay alone. "
      + "With --weights run/checkpoints/step_... the step has the moments of that run. ";
  const e = section("parameters", "Parameters: gradient and update", adam
    + `The norm of the whole gradient is ${number(DATA.norm)}` + (DATA.scale < 1 ? `; clipping at ${number(O.grad_clip)} multiplies it by ${number(DATA.scale)}.` : "; it is not clipped.")
    + " The last column is the norm of the update as a share of the norm of the weights, on a logarithmic scale from 1e-5 to 1"
    + (run ? "; around 1e-3 is usual in training." : "; around 1e-3 is usual in training, much more in a first step."));
  const card = element(e, "div", {class: "card"});
  const body = table(card, ["parameter", ">weights", ">gradient", ">largest", ">update", ">update / weights", ""], {class: "bars"});
  for (const u of DATA.updates) {
    row(body, [cell => {
      const name = DATA.maps[u.name] ? element(cell, "button", {type: "button", class: "link", title: "its gradient, element by element"}) : element(cell, "span");
      u.name.split(/(?<=\.)/).forEach((part, i) => { if (i) element(name, "wbr"); name.append(part); });
      if (DATA.maps[u.name]) name.onclick = () => {
        const choice = document.querySelector("#numeric select");
        choice.value = u.name;
        choice.onchange();
        document.getElementById("numeric").scrollIntoView({block: "center"});
      };
      element(cell, "small", {class: "note"}, " " + shape(u.shape));
    },
               n(u.weight, 3), n(u.grad, 3), n(u.largest, 3), n(u.update, 3),
               {n: u.ratio === null ? "weights 0" : number(u.ratio, 3)}, bar(u.ratio === null ? 0 : 1 + Math.log10(u.ratio || 1e-9) / 5, "second")]);
  }
  element(card, "p", {class: "note optional"}, "“Largest” is the largest gradient of an element, by size.");

  const count = Object.values(DATA.samples).flat().length, measured = element(e, "div", {class: "card", id: "numeric"});
  element(measured, "h3", {}, "Is the gradient right? Measured beside computed");
  element(measured, "p", {}, `Choose a ringed element: ${count} elements were measured when this page was made, in ${Object.keys(DATA.samples).length} of ${DATA.updates.length} parameters; `
    + "of each the one with the largest gradient, others drawn among those whose gradient is not 0, and one with a gradient of 0 where there are any. "
    + "Computed: by backward, in float32. Measured: the loss in float64, once with the element 1e-5 larger and once 1e-5 "
    + "smaller; their difference, divided by 2e-5.");
  const choice = element(element(measured, "p"), "select", {"aria-label": "parameter"}), samplesOf = name => DATA.samples[name] || [];
  for (const name in DATA.maps) element(choice, "option", {value: name}, `${name}: ${samplesOf(name).length || "none"} measured`);
  const picture = element(measured, "div", {class: "picture"});
  const canvas = element(picture, "canvas", {tabindex: "0"}), cursor = element(picture, "i"), about = element(measured, "p", {class: "note"});
  const line = element(measured, "p", {"aria-live": "polite", id: "element"}), holder = element(measured, "div");
  let paint = () => {}, choose = () => {}, point = () => {}, at = [0, 0], cells = [1, 1];
  painters.push(() => paint());
  const list = () => {
    const name = choice.value, {matrix, block, values} = DATA.maps[name], samples = samplesOf(name);
    const update = DATA.updates.find(one => one.name === name), whole = new Int8Array(bytesOf(values).buffer);
    cells = matrix.map((n, axis) => Math.ceil(n / block[axis]));
    at = [0, 0];
    const cellOf = ({index}) => {                                       // all axes but the last one are rows
      const row = index.slice(0, -1).reduce((sum, i, axis) => sum * update.shape[axis] + i, 0);
      return [Math.floor(row / block[0]), Math.floor((index[index.length - 1] ?? 0) / block[1])];
    };
    const place = (e, [r, c]) => { e.style.left = `${100 * (c + .5) / cells[1]}%`; e.style.top = `${100 * (r + .5) / cells[0]}%`; };
    paint = heat(canvas, cells[1], cells[0], (x, y) => { const v = whole[y * cells[1] + x]; return v && Math.sign(v) * (.2 + .8 * Math.abs(v) / 127); });
    canvas.style.height = `${Math.max(36, Math.min(260, 4 * cells[0]))}px`;
    canvas.setAttribute("aria-label", `gradient of ${name}; the arrow keys go from one place to the next, the ringed elements are buttons`);
    about.textContent = `The gradient of ${name} ${shape(update.shape)}, ${update.shape.length > 1 ? "rows downwards, " : ""}blue is positive, orange negative, logarithmic; without a colour: exactly 0, `
      + `${update.zeros.toLocaleString("en")} of ${update.shape.reduce((a, b) => a * b, 1).toLocaleString("en")} elements.`
      + (block[0] * block[1] > 1 ? ` A place stands for ${block[0]} × ${block[1]} elements, its colour for the largest of them.` : "")
      + (samples.length ? "" : " No element of this parameter is in the sample.");
    for (const ring of [...picture.querySelectorAll("button")]) ring.remove();
    holder.replaceChildren();
    const body = samples.length ? table(holder, ["element", ">value", ">computed", ">measured", ">difference"]) : null;
    const rings = samples.map((one, i) => {
      const words = `[${one.index.join(", ")}]`, ring = element(picture, "button", {type: "button", title: `${words}, measured`, "aria-label": `element ${words}, measured`});
      place(ring, cellOf(one));
      ring.onclick = () => choose(i);
      const line = row(body, [words, n(one.value), n(one.grad, 6), n(one.numeric, 6), n(one.difference, 2)], {class: "choose"});
      line.onclick = () => choose(i);
      return {ring, line};
    });
    const mark = chosen => rings.forEach(({ring, line}, i) => {
      ring.setAttribute("aria-pressed", String(i === chosen));
      line.setAttribute("aria-selected", String(i === chosen));
    });
    choose = i => {
      const {index, grad, numeric, difference} = samples[i];
      at = cellOf(samples[i]);
      cursor.hidden = true;
      mark(i);
      line.textContent = `Element [${index.join(", ")}] of ${name}: computed ${number(grad, 6)}, measured ${number(numeric, 6)}; they differ by ${number(Math.abs(difference), 2)}.`;
    };
    point = (r, c) => {
      const found = samples.findIndex(one => cellOf(one).join() === [r, c].join());
      if (found >= 0) return choose(found);
      at = [r, c];
      cursor.hidden = false;
      place(cursor, at);
      mark(-1);
      const range = (k, axis) => { const last = Math.min(matrix[axis], (k + 1) * block[axis]) - 1; return last > k * block[axis] ? `${k * block[axis]} to ${last}` : `${last}`; };
      const where = (update.shape.length > 1 ? [range(r, 0), range(c, 1)] : [range(c, 1)]).join(", "), v = whole[r * cells[1] + c];
      const computed = v === 0 ? "exactly 0" : Math.abs(v) === 1 ? `smaller than ${number(update.largest * 1.2e-4, 2)}` : `about ${number(Math.sign(v) * update.largest * 10 ** (4 * (Math.abs(v) / 127 - 1)), 2)}`;
      line.textContent = `[${where}] of ${name}: not in the sample, so nothing was measured here. Backward computed a gradient that is ${computed}${block[0] * block[1] > 1 ? " for the largest of these elements" : ""}. `
        + (samples.length ? "The ringed elements were measured." : "No element of this parameter was measured.");
    };
    cursor.hidden = true;
    line.textContent = "";
    if (samples.length) choose(0);
  };
  canvas.onclick = event => {
    const box = canvas.getBoundingClientRect(), part = (v, k) => Math.max(0, Math.min(cells[k] - 1, Math.floor(v * cells[k])));
    point(part((event.clientY - box.top) / box.height, 0), part((event.clientX - box.left) / box.width, 1));
  };
  canvas.onkeydown = event => {
    const step = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
    if (!step) return;
    event.preventDefault();
    point(...step.map((by, k) => Math.max(0, Math.min(cells[k] - 1, at[k] + by))));
  };
  choice.onchange = list;
  list();
})();
