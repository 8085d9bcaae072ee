// What syscall filters cost: a launch under the default one, and under one that reports, against one without; and how long it
// takes until the host knows of a violation.

import { compare, plain, type Scenario } from '../measure.ts'

/** As users launch. */
export const filter: Scenario = {
  name: 'filter',
  what: 'the default syscall filter, and one that reports, against none: warm',
  // With 400 launches the interval of a ratio is wider than the few per cent that this is about.
  run: (context) =>
    compare(context, plain(['nestbox-unfiltered', 'nestbox', 'nestbox-report']), { launches: context.settings.tail }),
}

export const filterCold: Scenario = {
  name: 'filter-cold',
  what: 'the same with nothing made ahead',
  run: (context) => compare(context, plain(['nestbox-cold-unfiltered', 'nestbox-cold', 'nestbox-cold-report'])),
}

export const violation: Scenario = {
  name: 'violation',
  what: 'from a forbidden system call until the host hears of it',
  run: (context) => compare(context, plain(['nestbox-violation', 'nestbox-violation-kill'])),
}
