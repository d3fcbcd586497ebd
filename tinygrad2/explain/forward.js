const C = DATA.config, L = DATA.blocks.length;
const where = t => `position ${t}, ${quoted(DATA.tokens[t])}`;

head("One forward pass, looked into", [
  "Choose a token below: by pointing, by touching, or with Tab and the arrow keys. Everything on this page then shows "
  + "what the model computed at that position. A dot stands for a space. All numbers are from one run of the model on this text."]);
tokenBar(t => DATA.tokens[t]);

// -- embeddings --------------------------------------------------------------------------------------------------------

(() => {
  const [some, all] = DATA.channels;
  const e = section("embeddings", "Embeddings", "A token enters as its row of the table wte, plus the row of wpe for its position: "
    + `${all} channels. Blue is positive, orange negative, in steps of 1/127 of the row's largest value`
    + (some < all ? `; channels 0 to ${some - 1} are shown.` : "."));
  const card = element(e, "div", {class: "card"}), rows = {token: "wte, the token", position: "wpe, the position", sum: "their sum"};
  const parts = Object.fromEntries(Object.keys(rows).map(name => [name, signed(DATA.embedding[name])]));
  const lines = Object.entries(rows).map(([name, title]) => {
    const caption = element(card, "div"), canvas = element(card, "canvas", {class: "strip", role: "img"});
    return {name, title, caption, canvas};
  });
  const details = element(card, "details"), numbers = element(details, "div");
  element(details, "summary", {}, "as numbers");
  const fill = t => {
    numbers.replaceChildren();
    const body = table(numbers, [">channel", ">wte", ">wpe", ">sum"]);
    for (let c = 0; c < some; c++) row(body, [n(c), n(parts.token[t][c], 3), n(parts.position[t][c], 3), n(parts.sum[t][c], 3)]);
  };
  details.ontoggle = () => { if (details.open) fill(shown); };
  let paint = () => {};
  painters.push(() => paint());
  follow(t => {
    const most = Math.max(...Object.values(DATA.embedding).map(part => part.scale[t])) || 1;
    const paints = lines.map(({name, title, caption, canvas}) => {
      caption.textContent = `${title}: norm ${number(DATA.embedding[name].norm[t])}`;
      canvas.setAttribute("aria-label", `${title} at ${where(t)}`);
      return heat(canvas, some, 1, x => parts[name][t][x] / most);
    });
    paint = () => paints.forEach(one => one());
    if (details.open) fill(t);
  });
})();

// -- attention ---------------------------------------------------------------------------------------------------------

(() => {
  const shownLayers = DATA.attention.length < L ? ` Shown: layers ${DATA.layers.join(", ")} of ${L}.` : "";
  const e = section("attention", "Attention: where each head looks", "Each position mixes the values of the positions up to its own; "
    + "the weights of a row sum to 1. In the squares a row is the position that asks, a column the one that is looked at; colour follows the "
    + `root of the weight, so that small ones can be seen; the line marks the chosen row. Choose a head to read it here.${shownLayers}`);
  for (const sentence of DATA.wrong) element(e, "p", {class: "wrong"}, `This is no causal attention: ${sentence}.`);
  const layers = DATA.attention.map(({layer, error, weights}) => ({layer, error, heads: weights.map(fractions)}));
  const rowOf = (head, t) => head.subarray(t * (t + 1) / 2, (t + 1) * (t + 2) / 2);
  let chosen = [0, 0], draw = () => {};
  const tiles = [];
  const reading = element(e, "div", {class: "card", id: "reading"});
  for (const [l, {layer, heads}] of layers.entries()) {
    const card = element(e, "div", {class: "card"});
    element(card, "h3", {}, `Layer ${layer}`);
    const grid = element(card, "div", {class: "heads"});
    heads.forEach((head, h) => {
      const button = element(grid, "button", {type: "button", "aria-pressed": "false"});
      element(button, "span", {}, `head ${h}`);
      const map = element(button, "span", {class: "map"});
      heatMap(map, {"aria-label": `attention weights of layer ${layer}, head ${h}`}, T, T,
              (x, y) => x > y ? 0 : Math.sqrt(head[y * (y + 1) / 2 + x]));
      tiles.push({l, h, button, head, mark: element(map, "i"), line: element(button, "small")});
      button.onclick = () => { chosen = [l, h]; draw(shown); };
    });
  }
  element(e, "p", {class: "note"}, "The fused op never holds these weights; they are recomputed from its q and k by the op's formula. "
    + `Weights times v differ from what the op returned by at most ${number(Math.max(...layers.map(layer => layer.error)), 2)}.`);
  const title = element(reading, "h3"), chips = element(reading, "div", {class: "chips"});
  const details = element(reading, "details"), numbers = element(details, "div");
  element(details, "summary", {}, "as numbers, all heads of this layer");
  const fill = t => {
    numbers.replaceChildren();
    const {heads} = layers[chosen[0]];
    const body = table(numbers, [">position", "token", ...heads.map((_, h) => `>head ${h}`)]);
    for (let s = 0; s <= t; s++) row(body, [n(s), token(DATA.tokens[s]), ...heads.map(head => ({n: rowOf(head, t)[s].toFixed(4)}))]);
    row(body, [cell => {}, "sum", ...heads.map(head => ({n: rowOf(head, t).reduce((a, b) => a + b, 0).toFixed(3)}))]);
  };
  details.ontoggle = () => { if (details.open) fill(shown); };
  draw = t => {
    for (const {l, h, button, head, mark, line} of tiles) {
      const weights = rowOf(head, t), [best] = largest(weights, 1);
      line.textContent = `${text(DATA.tokens[best])} ${weights[best].toFixed(2)}`;
      line.title = `looks most at ${where(best)}`;
      mark.style.top = `calc(${100 * (t + .5) / T}% - 1px)`;
      button.setAttribute("aria-pressed", String(chosen[0] === l && chosen[1] === h));
    }
    const {layer, heads} = layers[chosen[0]], weights = rowOf(heads[chosen[1]], t);
    title.textContent = `Layer ${layer}, head ${chosen[1]}: where ${where(t)} looks`;
    chips.replaceChildren();
    weights.forEach((w, s) => {
      const chip = element(chips, "div", {class: "chip", style: tint(w), "aria-current": String(s === t)});
      element(chip, "span", {class: "token"}, text(DATA.tokens[s]));
      element(chip, "small", {}, w < .0005 ? "0" : w.toFixed(3).replace(/^0/, ""));
    });
    if (details.open) fill(t);
  };
  follow(t => draw(t));
})();

// -- residual stream ---------------------------------------------------------------------------------------------------

(() => {
  const e = section("stream", "The residual stream: what each block adds", "Attention and MLP only add to the stream x of a position. "
    + "Norms of what was there, of what was added, and of the result. Norms need not add up: an addition may point anywhere.");
  const card = element(e, "div", {class: "card"}), body = table(card, ["", ">norm", ""], {class: "bars"});
  element(card, "p", {class: "note"}, "All bars of this table have one scale.");
  follow(t => {
    body.replaceChildren();
    const most = Math.max(...DATA.blocks.flatMap(b => [b.before[t], b.attn[t], b.mlp[t], b.after[t]]));
    row(body, ["x = wte + wpe", n(DATA.blocks[0].before[t]), bar(DATA.blocks[0].before[t] / most)]);
    DATA.blocks.forEach((block, l) => {
      row(body, [`layer ${l}: attention adds`, n(block.attn[t]), bar(block.attn[t] / most, "second")]);
      row(body, [`layer ${l}: MLP adds`, n(block.mlp[t]), bar(block.mlp[t] / most, "third")]);
      row(body, [`x after layer ${l}`, n(block.after[t]), bar(block.after[t] / most)]);
    });
  });
})();

// -- logit lens --------------------------------------------------------------------------------------------------------

const lensName = l => l ? `after layer ${l - 1}` : "embeddings";
(() => {
  const e = section("lens", "Logit lens: what each layer would say", "The final layernorm and the head, applied to the stream after each "
    + "layer as if it were the last. Only the last row is the model's prediction; earlier layers were never trained to be read this way. "
    + "In each field the most probable next token and its probability; a stronger colour is a higher one.");
  const card = element(e, "div", {class: "card wide"}), grid = element(card, "table", {class: "lens"});
  const first = element(grid, "tr");
  element(first, "th", {}, "token");
  const columns = DATA.tokens.map((id, t) => [element(first, "td", {class: "token"}, text(id))]);
  DATA.lens.forEach((rows, l) => {
    const line = element(grid, "tr");
    element(line, "th", {scope: "row"}, lensName(l));
    rows.forEach(({ids, p}, t) => {
      const cell = element(line, "td", {style: tint(p[0])});
      element(cell, "span", {class: "token"}, text(ids[0]));
      element(cell, "small", {}, percent(p[0]));
      cell.onclick = () => pin(t);
      columns[t].push(cell);
    });
  });
  const detail = element(e, "div", {class: "card"}), title = element(detail, "h3"), holder = element(detail, "div");
  let before = 0;
  follow(t => {
    for (const cell of columns[before]) cell.removeAttribute("aria-selected");
    for (const cell of columns[before = t]) cell.setAttribute("aria-selected", "true");
    title.textContent = `What comes after ${where(t)}`;
    holder.replaceChildren();
    const body = table(holder, ["", ...DATA.lens[0][0].ids.map((_, i) => i ? `${i + 1}.` : "most probable"), ">others"]);
    DATA.lens.forEach((rows, l) => row(body, [lensName(l), ...rows[t].ids.map((id, i) => cell => {
      element(cell, "span", {class: "token"}, text(id));
      cell.append(" " + percent(rows[t].p[i]));
    }), p(rows[t].rest)]));
  });
})();

// -- predictions -------------------------------------------------------------------------------------------------------

(() => {
  const e = section("predictions", "The prediction");
  const card = element(e, "div", {class: "card"}), title = element(card, "h3"), holder = element(card, "div"), note = element(card, "p", {class: "note"});
  follow(t => {
    title.textContent = `The most probable tokens after ${where(t)}`;
    holder.replaceChildren();
    const body = table(holder, ["token", ">id", ">probability", ""], {class: "bars"}), {ids, p: values, rest} = DATA.top[t];
    ids.forEach((id, i) => row(body, [token(id), {n: String(id)}, p(values[i]), bar(values[i])],
                               {"aria-selected": String(t + 1 < T && id === DATA.tokens[t + 1])}));
    const others = C.vocab_size - ids.length;
    if (others) row(body, [`${others.toLocaleString("en")} other tokens`, "", p(rest), bar(rest, "second")]);
    note.textContent = t + 1 < T
      ? `In the text ${quoted(DATA.tokens[t + 1])} follows: probability ${percent(DATA.next[t])}, loss ${number(-Math.log(DATA.next[t]))} nats.`
      : "Here the text ends: this is what the model would continue with.";
  });
})();
