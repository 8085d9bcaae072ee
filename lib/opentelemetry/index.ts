// `nestbox/opentelemetry`: launches as spans and metrics of OpenTelemetry.

export { instrument } from './instrument.ts'
export type { Instrumentation, InstrumentOptions } from './instrument.ts'
