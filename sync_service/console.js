"use strict";
// Draws what /state.json says, every two seconds. Text only ever becomes text: nothing here is parsed as HTML.

const EVERY_MS = 2000;
const STATES = {
  done: ["delivered", "good"],
  queued: ["on its way", "wait"],
  parked: ["refused by the Hub", "bad"],
  held: ["held", "bad"],
  repeat: ["repeat, not sent again", "quiet"],
};
const QUALITIES = {
  synced: "clock checked",
  extrapolated: "clock carried on",
  sensor_corrected: "Sensor's clock, corrected",
  bracketed: "between two known moments",
};

function make(tag, name, ...content) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...content);
  return element;
}

function clock(ms, withDay) {
  const options = { hour: "2-digit", minute: "2-digit", second: "2-digit" };
  if (withDay) Object.assign(options, { day: "numeric", month: "short" });
  return new Intl.DateTimeFormat("en-GB", options).format(ms);
}

function span(ms) {
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 90_000) return `${(ms / 1000).toFixed(ms < 10_000 ? 1 : 0)} s`;
  if (ms < 5_400_000) return `${Math.round(ms / 60_000)} min`;
  return `${(ms / 3_600_000).toFixed(1)} h`;
}

function ago(ms, now) {
  return ms === null ? "never" : `${span(Math.max(0, now - ms))} ago`;
}

function when(reading, now) {
  const { earliest_ms: earliest, latest_ms: latest } = reading;
  if (earliest === null || latest === null) return "time not known";
  const day = now - latest > 43_200_000;
  const quality = QUALITIES[reading.quality] ?? reading.quality;
  if (reading.quality === "bracketed") return `${clock(earliest, day)} to ${clock(latest, day)}, ${quality}`;
  return `${clock((earliest + latest) / 2, day)} ± ${span((latest - earliest) / 2)}, ${quality}`;
}

function numbers(reading) {
  const line = make("div", "numbers");
  for (const [name, number, unit] of reading.values) {
    line.append(make("span", "", make("small", "", `${name} `), number, make("small", "", ` ${unit}`)));
  }
  if (!reading.values.length) line.append(make("span", "bad", "no measurement"));
  return line;
}

function drawReading(reading, now, withKit) {
  const [state, tone] = STATES[reading.state] ?? [reading.state, "quiet"];
  const marks = [reading.kind, ...reading.words];
  if (reading.trust === "questionable") marks.push("questionable");
  if (reading.possible_repeat) marks.push("possible repeat");
  const place = withKit ? `${reading.kit}, ` : "";
  const row = make("div", "reading", numbers(reading), make("div", `state ${tone}`, state));
  row.append(make("div", "when", `${when(reading, now)} · ${place}${reading.sensor} · ${marks.join(", ")}`));
  if (reading.why) row.append(make("div", "why", reading.why));
  return row;
}

function drawKit(kit, now) {
  const link = kit.online ? ["on line", "good"] : kit.online === false ? ["off line", "bad"] : ["not heard yet", "quiet"];
  const card = make("section", "kit");
  card.append(make("div", "head", make("h2", "", kit.kit), make("span", link[1], link[0])));
  const facts = [
    kit.state === "active" ? null : `certificate ${kit.state}`,
    kit.episode ? `Episode ${kit.episode}` : "with no patient",
    `last Batch ${ago(kit.seen_ms, now)}`,
    kit.pending ? `${kit.pending} Records on the Kit` : null,
    kit.host_confirmed ? "bench Gateway: promise P1 does not hold" : null,
  ];
  card.append(make("p", "facts", facts.filter(Boolean).join(" · ")));
  for (const reading of kit.readings) card.append(drawReading(reading, now, false));
  if (!kit.readings.length) card.append(make("p", "empty", "No Reading yet."));
  const counted = Object.entries(kit.counters);
  if (counted.length) {
    const details = make("details", "", make("summary", "", "Counters"));
    details.open = open.has(kit.kit);
    details.addEventListener("toggle", () => (details.open ? open.add(kit.kit) : open.delete(kit.kit)));
    details.append(make("div", "", counted.map(([name, n]) => `${name}: ${n}`).join(" · ")));
    card.append(details);
  }
  return card;
}

const open = new Set(); // Kits whose counters somebody has opened

function draw(state) {
  const now = state.now_ms;
  const totals = document.getElementById("totals");
  totals.replaceChildren(
    ...Object.entries(state.totals).map(([name, n]) => make("div", "", make("dt", "", name), make("dd", "", String(n)))),
  );
  document.getElementById("kits").replaceChildren(...state.kits.map((kit) => drawKit(kit, now)));
  const attention = document.getElementById("attention");
  attention.hidden = !state.attention.length;
  attention.querySelector(".readings").replaceChildren(...state.attention.map((r) => drawReading(r, now, true)));
}

async function update() {
  const live = document.getElementById("live");
  try {
    const answer = await fetch("state.json", { cache: "no-store", signal: AbortSignal.timeout(10_000) });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const state = await answer.json();
    draw(state);
    live.textContent = `live, ${clock(state.now_ms)}`;
    live.className = "";
  } catch (error) {
    live.textContent = "The service does not answer: what you see is old.";
    live.className = "lost";
  }
  setTimeout(update, EVERY_MS);
}

update();
