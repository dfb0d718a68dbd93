// Reads a dashboard's file and values for its panels, and writes what Grafana's own code makes of them.
// Grafana's code expects a browser.
globalThis.window = {};
globalThis.navigator ??= { languages: ["en"] };
const fs = require("node:fs");
const data = require("@grafana/data");

const theme = data.createTheme();
const asked = JSON.parse(fs.readFileSync(0, "utf8"));
const rows = JSON.parse(fs.readFileSync(asked.dashboard, "utf8")).panels;
const panels = rows.flatMap((panel) => (panel.type === "row" ? panel.panels : [panel]));
const titled = (title, type) => panels.find((panel) => panel.title === title && panel.type === type);

// Grafana's standard options, and the custom ones of this dashboard's tables and graphs.
const option = (id, isCustom) => ({
  id: isCustom ? `custom.${id}` : id,
  path: id,
  name: id,
  isCustom,
  process: (value) => value,
  override: (value) => value,
  shouldApply: () => true,
});
const registry = new data.FieldConfigOptionsRegistry(() => [
  ...["color", "decimals", "links", "mappings", "noValue", "thresholds", "unit"].map((id) => option(id, false)),
  ...["axisPlacement", "cellOptions", "hidden", "hideFrom", "lineStyle"].map((id) => option(id, true)),
]);
const transformers = new Map(Object.values(data.standardTransformers).map((each) => [each.id, each]));
data.standardTransformersRegistry.setInit(() =>
  [...transformers].map(([id, transformation]) => ({ id, name: id, transformation })),
);
const configured = (frames, fieldConfig) =>
  data.applyFieldOverrides({
    data: frames,
    fieldConfig,
    fieldConfigRegistry: registry,
    replaceVariables: (text) => text,
    theme,
    timeZone: "utc",
  });

// The names that Grafana does not know.
function* unknown() {
  const units = new Set(data.getValueFormats().flatMap((group) => group.submenu.map((unit) => unit.value)));
  const fields = panels.flatMap((panel) => {
    const overrides = panel.fieldConfig?.overrides ?? [];
    return [
      { title: panel.title, ...panel.fieldConfig?.defaults },
      ...overrides.map((each) => ({
        title: `${panel.title}, ${each.matcher.options}`,
        ...Object.fromEntries(each.properties.map(({ id, value }) => [id, value])),
      })),
    ];
  });
  for (const { title, unit, color } of fields) {
    if (unit !== undefined && !units.has(unit) && !/^suffix:./.test(unit)) yield `${title}: unit ${unit}`;
    if (color !== undefined && !data.fieldColorModeRegistry.getIfExists(color.mode)) {
      yield `${title}: color mode ${color.mode}`;
    }
  }
  for (const { title, options, fieldConfig, transformations } of panels) {
    for (const id of [...(options?.reduceOptions?.calcs ?? []), ...(options?.legend?.calcs ?? [])]) {
      if (!data.fieldReducers.getIfExists(id)) yield `${title}: reducer ${id}`;
    }
    for (const { matcher, properties } of fieldConfig?.overrides ?? []) {
      if (!data.fieldMatchers.getIfExists(matcher.id)) yield `${title}: matcher ${matcher.id}`;
      for (const { id } of properties) if (!registry.getIfExists(id)) yield `${title}: option ${id}`;
    }
    for (const { id } of transformations ?? []) if (!transformers.has(id)) yield `${title}: transformation ${id}`;
  }
}

// The text and the colour of a number, after these values of its series; without values there is no series.
function number({ title, values }) {
  const panel = titled(title, "stat");
  const numbers = values.map((value) => (value === "NaN" ? NaN : value));
  const frame = data.toDataFrame({
    fields: [
      { name: "Time", type: "time", values: numbers.map((_, place) => 15000 * place) },
      { name: "Value", type: "number", values: numbers },
    ],
  });
  const [shown] = data.getFieldDisplayValues({
    data: configured(numbers.length ? [frame] : [], panel.fieldConfig),
    fieldConfig: panel.fieldConfig,
    reduceOptions: { values: false, fields: "", ...panel.options.reduceOptions },
    replaceVariables: (text) => text,
    theme,
  });
  return [data.formattedValueToString(shown.display), shown.display.color];
}

// The columns of a table and the texts in its rows. frames: for each query its rows, as labels and a value.
async function table({ title, frames }) {
  const panel = titled(title, "table");
  const given = frames.map((series, place) => {
    const labels = [...new Set(series.flatMap(([names]) => Object.keys(names)))];
    const name = frames.length > 1 ? `Value #${panel.targets[place].refId}` : "Value";
    return data.toDataFrame({
      refId: panel.targets[place].refId,
      fields: [
        { name: "Time", type: "time", values: series.map(() => 0) },
        ...labels.map((label) => ({ name: label, type: "string", values: series.map(([names]) => names[label]) })),
        { name, type: "number", values: series.map(([, value]) => value) },
      ],
    });
  });
  const context = { interpolate: (text) => text };
  const [made] = await new Promise((resolve, reject) =>
    data.transformDataFrame(panel.transformations, given, context).subscribe({ next: resolve, error: reject }),
  );
  const [frame] = configured([made], panel.fieldConfig);
  const visible = frame.fields.filter((field) => !field.config.custom?.hidden);
  const cell = (field, row) => data.formattedValueToString(field.display(field.values[row]));
  const proxy = data.getFieldDisplayValuesProxy;
  return {
    columns: visible.map((field) => data.getFieldDisplayName(field, frame)),
    rows: [...Array(frame.length).keys()].map((row) => visible.map((field) => cell(field, row))),
    // What `${__data.fields.NAME.text}` is in the links of each row.
    linked: [...Array(frame.length).keys()].map((row) => {
      const fields = proxy({ frame, rowIndex: row });
      const names = JSON.stringify(panel.fieldConfig.overrides).matchAll(/__data\.fields\.(\w+)/g);
      return Object.fromEntries([...names].map(([, name]) => [name, fields[name]?.text]));
    }),
  };
}

(async () => {
  const answer = {
    unknown: [...unknown()],
    numbers: asked.numbers.map(number),
    tables: await Promise.all(asked.tables.map(table)),
  };
  process.stdout.write(JSON.stringify(answer));
})();
