// The types of what a dashboard's file contains, from Grafana's schema. A test writes dashboards.ts beside a copy
// of this file.
import type { AnnotationQuery, Dashboard, FieldConfig, Panel, RowPanel, VariableModel } from "@grafana/schema";
import type * as heatmap from "@grafana/schema/dist/esm/raw/composable/heatmap/panelcfg/x/HeatmapPanelCfg_types.gen.d.ts";
import type * as stat from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen.d.ts";
import type * as timeline from "@grafana/schema/dist/esm/raw/composable/statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen.d.ts";
import type * as table from "@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen.d.ts";
import type * as text from "@grafana/schema/dist/esm/raw/composable/text/panelcfg/x/TextPanelCfg_types.gen.d.ts";
import type * as timeseries from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen.d.ts";

// The schema has enumerations, the file has their values.
type Plain<T> = T extends string
  ? `${T}`
  : T extends number
    ? `${T}` extends `${infer N extends number}`
      ? N
      : never
    : T extends (infer E)[]
      ? Plain<E>[]
      : T extends object
        ? { [K in keyof T]: Plain<T[K]> }
        : T;

interface Nothing {}
interface Kinds {
  heatmap: [heatmap.Options, heatmap.FieldConfig];
  stat: [stat.Options, Nothing];
  "state-timeline": [timeline.Options, timeline.FieldConfig];
  table: [table.Options, table.FieldConfig];
  text: [text.Options, Nothing];
  timeseries: [timeseries.Options, timeseries.FieldConfig];
}

export type Board = Plain<Omit<Dashboard, "panels">>;
export type Variable = Plain<VariableModel>;
export type Mark = Plain<AnnotationQuery>;
export type Row = Plain<Omit<RowPanel, "panels">>;
// `options` and `custom` are open in the schema's Panel; each kind of panel has types of its own for them.
export type Frame = Plain<Omit<Panel, "options" | "fieldConfig">> & { type: keyof Kinds };
export type Options<K extends keyof Kinds> = Plain<Partial<Kinds[K][0]>>;
export type Custom<K extends keyof Kinds> = Plain<Partial<Kinds[K][1]>>;
export type Field = Plain<Omit<FieldConfig, "custom">>;
