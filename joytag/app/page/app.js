// The page: opens the tabs that the service has.

import { ask, byId } from "./dom.js";
import { openLabelling } from "./label.js";
import { openTagging } from "./tag.js";

const TABS = ["tag", "label"];

async function start() {
  const models = await ask("models");
  const tags = await Promise.all(models.map((_, number) => ask(`tags?model=${number}`)));
  openTagging(models.map((model, number) => ({ ...model, number, rows: tags[number] })));
  byId("about").textContent = models.map(({ name, tags, size }) => `${name}: ${tags.toLocaleString("en")} tags, ${size} px`).join("; ");
  const { paths } = await ask("openapi.json");
  if (!paths["/api/label"]) return;
  await openLabelling(models[0]);
  byId("tabs").hidden = false;
  const show = (name) => TABS.forEach((each) => {
    byId(each).hidden = each !== name;
    byId(`${each}-tab`).setAttribute("aria-selected", each === name);
  });
  TABS.forEach((name) => byId(`${name}-tab`).addEventListener("click", () => show(name)));
}

start().catch((error) => {
  byId("fatal").textContent = `The models could not be read: ${error.message}`;
  byId("fatal").hidden = false;
});
