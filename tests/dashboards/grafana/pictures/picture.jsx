// Draws panels with Grafana's own components. `shown` has the panels, and the series of each query.
// By `require`: a bundler takes the default exports of CommonJS packages wrongly from Grafana's other build.
const data = require("@grafana/data");
const { BigValue, GlobalStyles, PanelChrome, Table, TimeSeries } = require("@grafana/ui");
const React = require("react");
const { createRoot } = require("react-dom/client");

const CELL = { width: 52, height: 38, gap: 8 }; // Grafana's grid, at 1280 pixels
const theme = data.createTheme({ colors: { mode: "light" } });
const ids = ["color", "decimals", "links", "mappings", "max", "min", "noValue", "thresholds", "unit"];
const custom = [
  ...["axisPlacement", "cellOptions", "fillOpacity", "hidden", "hideFrom"],
  ...["lineStyle", "lineWidth", "showPoints", "stacking", "thresholdsStyle"],
];
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
  ...ids.map((id) => option(id, false)),
  ...custom.map((id) => option(id, true)),
]);
const transformers = Object.values(data.standardTransformers);
const named = new Map(transformers.map((each) => [each.id, { id: each.id, name: each.id, transformation: each }]));
data.standardTransformersRegistry.setInit(() => [...named.values()]);

const time = {
  from: data.dateTime(1000 * window.shown.from),
  to: data.dateTime(1000 * window.shown.to),
  raw: { from: "", to: "" },
};

function framesOf(panel) {
  return panel.series.map(({ name, points, labels }) => {
    const fields =
      panel.type === "table"
        ? Object.entries(labels).map(([label, value]) => ({ name: label, type: "string", values: [value] }))
        : [];
    return data.toDataFrame({
      fields: [
        { name: "Time", type: "time", values: points.map(([moment]) => 1000 * moment) },
        ...fields,
        { name: "Value", type: "number", values: points.map(([, value]) => Number(value)), config: { displayNameFromDS: name } },
      ],
    });
  });
}

const configured = (frames, panel) =>
  data.applyFieldOverrides({
    data: frames,
    fieldConfig: panel.fieldConfig,
    fieldConfigRegistry: registry,
    replaceVariables: (text) => text,
    theme,
    timeZone: "utc",
  });

function Stat({ panel, width, height }) {
  const [shown] = data.getFieldDisplayValues({
    data: configured(framesOf(panel), panel),
    fieldConfig: panel.fieldConfig,
    reduceOptions: { values: false, fields: "", ...panel.options.reduceOptions },
    replaceVariables: (text) => text,
    sparkline: panel.options.graphMode === "area",
    theme,
  });
  if (panel.options.textMode === "name") shown.display.title = panel.series[0]?.name ?? "";
  const options = panel.options;
  return (
    <BigValue
      value={shown.display}
      sparkline={shown.sparkline}
      colorMode={options.colorMode}
      graphMode={options.graphMode}
      justifyMode={options.justifyMode}
      textMode={options.textMode}
      {...{ theme, width, height }}
    />
  );
}

function Graph({ panel, width, height }) {
  const frames = configured(framesOf(panel), panel);
  frames.forEach((frame, index) => {
    frame.fields[1].state = { ...frame.fields[1].state, seriesIndex: index };
  });
  return (
    <TimeSeries
      frames={frames}
      legend={panel.options.legend}
      timeRange={time}
      timeZone="utc"
      options={panel.options}
      {...{ width, height }}
    />
  );
}

function Rows({ panel, width, height }) {
  const [shown, setShown] = React.useState();
  React.useEffect(() => {
    const context = { interpolate: (text) => text };
    const made = data.transformDataFrame(panel.transformations, framesOf(panel), context);
    const watching = made.subscribe(([frame]) => setShown(frame && configured([frame], panel)[0]));
    return () => watching.unsubscribe();
  }, []);
  if (!shown?.length) return <p style={{ textAlign: "center" }}>{panel.fieldConfig.defaults.noValue}</p>;
  return <Table data={shown} {...{ width, height }} />;
}

const KINDS = { stat: Stat, timeseries: Graph, table: Rows };

function Row() {
  return window.shown.panels.map((panel) => {
    const { x, y, w, h } = panel.gridPos;
    const width = w * CELL.width - CELL.gap;
    const height = h * CELL.height - CELL.gap;
    const Kind = KINDS[panel.type];
    const place = { position: "absolute", left: x * CELL.width, top: (y - 1) * CELL.height };
    return (
      <div key={panel.id} style={place}>
        <PanelChrome title={panel.title} description={panel.description} {...{ width, height }}>
          {(innerWidth, innerHeight) => <Kind panel={panel} width={innerWidth} height={innerHeight} />}
        </PanelChrome>
      </div>
    );
  });
}

createRoot(document.getElementById("root")).render(
  <data.ThemeContext.Provider value={theme}>
    <GlobalStyles />
    <Row />
  </data.ThemeContext.Provider>,
);
