// The player: a slider and a button move through the frames of a film; tokens, status, map and table follow.

// Rows of numbers of texts, one for each frame, from the first row and what changes.
function unfold(lane) {
  const rows = [lane.first];
  for (const change of lane.changes) {
    const row = rows[rows.length - 1].slice();
    for (let i = 0; i < change.length; i += 2) row[change[i]] = change[i + 1];
    rows.push(row);
  }
  return rows;
}

function classes(mark, text, isEnd) {
  const kind = text ? (text.includes("\n") ? " break" : "") : " part";
  return `t ${mark.colour} ${mark.pattern}${kind}${isEnd ? " end" : ""}`;
}

// One lane of tokens; only what changes is written.
function startLane(box, lane, marks, ends) {
  const rows = unfold(lane), last = new Set(ends.slice(0, -1).map(end => end - 1));
  const spans = lane.first.map(() => document.createElement("span"));
  box.replaceChildren(...spans);
  return {
    rows,
    show(frame) {
      const at = lane.shown ? 0 : frame, count = lane.shown ? lane.shown[frame] : spans.length;
      spans.forEach((span, place) => {
        const text = lane.words[rows[at][place]];
        const name = classes(marks[lane.marks[at][place]], text, last.has(place)) + (place < count ? "" : " later");
        if (span.textContent !== text) span.textContent = text;
        if (span.className !== name) span.className = name;
      });
    },
  };
}

function fillTable(details, state, frame) {
  if (!details || !details.open) return;
  const lane = state.film.lanes[0], wanted = state.film.wanted;
  const cell = (name, text) => {
    const made = document.createElement(name);
    made.textContent = text;
    return made;
  };
  details.querySelector("tbody").replaceChildren(...state.rows[frame].map((word, place) => {
    const row = document.createElement("tr"), head = cell("th", place + 1);
    head.scope = "row";
    row.append(head);
    if (wanted.length) row.append(cell("td", JSON.stringify(wanted[place])));
    row.append(cell("td", JSON.stringify(lane.words[word])), cell("td", state.marks[lane.marks[frame][place]].words));
    return row;
  }));
}

function startScene(section) {
  const { films, marks } = JSON.parse(section.querySelector("script[type='application/json']").textContent);
  const find = name => section.querySelector(name);
  const slider = find("input[type=range]"), button = find(".play"), status = find(".status"), details = find(".tokenwise");
  const state = { film: null, rows: null, lanes: [], marks, timer: 0 };
  const map = startMap(find(".map"), state, frame => { pause(); show(frame); });

  function show(frame) {
    frame = Math.max(0, Math.min(state.film.status.length - 1, frame));
    slider.value = frame;
    slider.setAttribute("aria-valuetext", state.film.status[frame]);
    status.textContent = state.film.status[frame];
    for (const lane of state.lanes) lane.show(frame);
    map.show(frame);
    fillTable(details, state, frame);
  }
  function load(number) {
    pause();
    state.film = films[number];
    const boxes = section.querySelectorAll(".tokens");
    state.lanes = state.film.lanes.map((lane, i) => startLane(boxes[i], lane, marks, state.film.ends));
    state.rows = state.lanes[0].rows;
    slider.max = state.film.status.length - 1;
    map.load();
    show(state.film.status.length - 1);
  }
  function pause() {
    cancelAnimationFrame(state.timer);
    state.timer = 0;
    button.textContent = "Play";
    status.setAttribute("aria-live", "polite");
  }
  function play() {
    const last = state.film.status.length - 1, pace = last / (1000 * state.film.seconds || 1);
    const first = Number(slider.value) >= last ? 0 : Number(slider.value);
    let began = null;
    button.textContent = "Pause";
    status.setAttribute("aria-live", "off");  // else every frame would be read out
    const next = now => {
      began ??= now;
      const frame = Math.min(last, first + Math.floor((now - began) * pace));
      show(frame);
      if (frame < last) state.timer = requestAnimationFrame(next);
      else pause();
    };
    state.timer = requestAnimationFrame(next);
  }
  const toggle = () => (state.timer ? pause() : play());

  button.addEventListener("click", toggle);
  slider.addEventListener("input", () => { pause(); show(Number(slider.value)); });
  slider.addEventListener("keydown", event => {
    if (event.key === " ") {
      event.preventDefault();
      toggle();
    }
  });
  if (details) {
    details.addEventListener("toggle", () => fillTable(details, state, Number(slider.value)));
    details.hidden = false;
  }
  const which = find("select");
  if (which) which.addEventListener("change", () => load(Number(which.value)));
  for (const part of section.querySelectorAll(".controls, .keys")) part.hidden = false;
  load(0);
}

for (const section of document.querySelectorAll("section.scene")) {
  if (section.querySelector("script[type='application/json']")) startScene(section);
}
