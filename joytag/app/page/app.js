// The page: opens the tabs that the service has.

import { ask, byId } from "./dom.js";
import { openLabelling } from "./label.js";
import { openTagging } from "./tag.js";

const TABS = ["tag", "label"];

function show(name) {
  for (const each of TABS) {
    byId(each).hidden = each !== name;
    byId(`${each}-tab`).setAttribute("aria-selected", each === name);
  }
}

async function start() {
  const models = await ask("models");
  const rows = await Promise.all(models.map((_, position) => ask(`tags?model=${position}`)));
  openTagging(models.map((model, position) => ({ ...model, position, rows: rows[position] })));
  const about = ({ name, tags, size }) => `${name}: ${tags.toLocaleString("en")} tags, ${size} px`;
  byId("about").textContent = models.map(about).join("; ");
  const { paths } = await ask("openapi.json");
  if (!paths["/api/label"]) return;
  await openLabelling(models[0]);
  byId("tabs").hidden = false;
  TABS.forEach((name) => byId(`${name}-tab`).addEventListener("click", () => show(name)));
}

start().catch((error) => (byId("about").textContent = `The models could not be read: ${error.message}`));
