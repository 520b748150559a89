"use strict";
// Draws what /state.json says, every two seconds. Text only ever becomes text: nothing here is parsed as HTML.
// What has not changed is left alone, so that focus, selection and a screen reader stay where they are.

const EVERY_MS = 2000;
// Word, symbol and tone: none of them has to be seen in colour.
const STATES = {
  done: ["delivered", "\u2713", "good"],
  queued: ["on its way", "\u2192", "wait"],
  parked: ["refused by the Hub", "\u2715", "bad"],
  held: ["held", "!", "bad"],
  repeat: ["repeat, not sent again", "\u21bb", "quiet"],
};
const QUALITIES = {
  synced: ["clock checked", "quiet"],
  extrapolated: ["clock checked earlier", "quiet"],
  sensor_corrected: ["Sensor\u2019s clock, corrected", "quiet"],
  bracketed: ["time uncertain", "wait"],
};
const TOTALS = [
  ["delivered", "delivered", "quiet"],
  ["waiting", "on their way", "quiet"],
  ["parked", "refused", "bad"],
  ["held", "held", "bad"],
  ["conflicts", "conflicts", "bad"],
  ["quarantined", "not understood", "bad"],
  ["undated", "no time yet", "bad"],
];
const ALWAYS = 4; // the first of TOTALS are shown when they are 0 as well

function make(tag, name, ...content) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...content);
  return element;
}

function tag(word, symbol, tone) {
  const mark = make("span", "", `${symbol}\u00a0`);
  mark.setAttribute("aria-hidden", "true");
  return make("span", `tag ${tone}`, mark, word);
}

function day(ms) {
  return new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" }).format(ms);
}

function clock(ms, today) {
  const time = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" }).format(ms);
  return day(ms) === today ? time : `${day(ms)} ${time}`;
}

function span(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 90_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 1 : 0)} s`;
  if (ms < 5_400_000) return `${Math.round(ms / 60_000)} min`;
  return `${(ms / 3_600_000).toFixed(1)} h`;
}

function taken(reading, today) {
  const { earliest_ms: earliest, latest_ms: latest } = reading;
  if (earliest === null || latest === null) return tag("time not known", "?", "bad");
  const bracket = reading.quality === "bracketed";
  const [word, tone] = QUALITIES[reading.quality] ?? [reading.quality, "quiet"];
  const time = bracket
    ? [make("b", "", clock(earliest, today)), " to ", make("b", "", clock(latest, today))]
    : [make("b", "", clock((earliest + latest) / 2, today)), ` \u00b1 ${span((latest - earliest) / 2)}`];
  return make("span", "when", ...time, " ", make("span", tone, word));
}

function numbers(reading) {
  const line = make("div", "numbers");
  for (const [name, number, unit] of reading.values) {
    line.append(make("span", "", make("small", "", `${name} `), number, make("small", "", `\u00a0${unit}`)), " ");
  }
  if (!reading.values.length) line.append(make("span", "", "no valid measurement"));
  return line;
}

function marks(reading) {
  const found = [tag(...(STATES[reading.state] ?? [reading.state, "?", "quiet"]))];
  if (reading.trust === "questionable") found.push(tag("questionable", "?", "wait"));
  if (reading.possible_repeat) found.push(tag("possible repeat", "?", "wait"));
  return found;
}

function why(reading) {
  if (!reading.why) return [];
  const said = reading.state === "held" ? "Why" : "The Hub said";
  const tries = reading.attempts > 1 ? `, at try ${reading.attempts}` : "";
  return [make("div", "why", make("b", "", `${said}${tries}: `), reading.why)];
}

function drawReading(reading, today, withKit) {
  const about = [withKit ? reading.kit : null, reading.kind, ...reading.words, reading.sensor];
  return make(
    "li",
    "reading",
    numbers(reading),
    make("div", "marks", ...marks(reading), taken(reading, today)),
    make("div", "about", about.filter(Boolean).join(" \u00b7 ")),
    ...why(reading),
  );
}

function link(kit) {
  if (kit.state !== "active") return tag(kit.state, "\u2715", "bad");
  if (kit.online === null) return tag("not heard yet", "\u2013", "quiet");
  return kit.online ? tag("on line", "\u25cf", "good") : tag("off line", "\u25cb", "wait");
}

function drawKit(kit, today) {
  const card = make("section", "kit");
  card.append(make("div", "head", make("h2", "", kit.kit), link(kit)));
  const facts = [
    kit.episode ? `Episode ${kit.episode}` : "with no patient",
    kit.seen_ms === null ? "nothing received yet" : `last received ${clock(kit.seen_ms, today)}`,
    // A Kit says this every few minutes only.
    kit.pending ? `${kit.pending} Records waited on the Kit at ${clock(kit.status_ms, today)}` : null,
    kit.host_confirmed ? "bench Gateway, not for patients" : null,
  ];
  card.append(make("p", "facts", facts.filter(Boolean).join(" \u00b7 ")));
  card.append(make("ul", "readings", ...kit.readings.map((reading) => drawReading(reading, today, false))));
  if (!kit.readings.length) card.append(make("p", "empty", "No Reading yet."));
  const counted = Object.entries(kit.counters);
  if (counted.length) card.append(drawCounters(kit.kit, counted));
  return card;
}

const open = new Set(); // Kits whose counters somebody has opened

function drawCounters(kit, counted) {
  const details = make("details", "", make("summary", "", "Counters"));
  details.open = open.has(kit);
  details.addEventListener("toggle", () => (details.open ? open.add(kit) : open.delete(kit)));
  details.append(make("div", "", counted.map(([name, n]) => `${name}: ${n}`).join(" \u00b7 ")));
  return details;
}

function drawTotals(totals) {
  const shown = TOTALS.filter(([name], i) => i < ALWAYS || totals[name]);
  return shown.map(([name, word, tone]) =>
    make("div", totals[name] ? tone : "quiet", make("dt", "", word), make("dd", "", String(totals[name]))),
  );
}

const drawn = new Map(); // name of a place in the page -> what it shows

// Call `draw` unless the place already shows just that.
function change(name, shows, draw) {
  const said = JSON.stringify(shows);
  if (drawn.get(name) === said) return;
  draw();
  drawn.set(name, said);
}

function draw(state) {
  const today = day(state.now_ms);
  const kits = document.getElementById("kits");
  change("kits", state.kits.map((kit) => kit.kit), () => {
    drawn.clear(); // other places hold other Kits now
    kits.replaceChildren(...state.kits.map(() => make("section")));
  });
  state.kits.forEach((kit, i) => change(kit.kit, [today, kit], () => kits.children[i].replaceWith(drawKit(kit, today))));
  const { totals, attention } = state;
  change("totals", totals, () => document.getElementById("totals").replaceChildren(...drawTotals(totals)));
  change("attention", [today, attention, totals], () => {
    const section = document.getElementById("attention");
    section.hidden = !attention.length;
    section.querySelector(".readings").replaceChildren(...attention.map((one) => drawReading(one, today, true)));
    section.querySelector(".more").hidden = attention.length === totals.parked + totals.held;
  });
}

function say(element, words) {
  if (element.textContent !== words) element.textContent = words;
}

async function update() {
  const updated = document.getElementById("updated");
  const alarm = document.getElementById("alarm");
  try {
    const answer = await fetch("state.json", { cache: "no-store", signal: AbortSignal.timeout(10_000) });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const state = await answer.json();
    draw(state);
    say(updated, `updated ${clock(state.now_ms, day(state.now_ms))}`);
    say(alarm, state.clock_doubt ? `Kits get no time: ${state.clock_doubt}.` : "");
  } catch (error) {
    say(alarm, "The service does not answer: what you see is old.");
  }
  setTimeout(update, EVERY_MS);
}

update();
