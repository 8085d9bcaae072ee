// What a launch takes, from the call until the result: beside others, without rest, in its tail, with its output captured.

import { compare, plain, type Scenario } from '../measure.ts'

/** All ways to launch, each after a pause. */
export const ignore: Scenario = {
  name: 'ignore',
  what: 'a trivial static program, stdio ignored, with a pause before each launch',
  run: (context) => {
    const ours = ['nestbox', 'nestbox-cold', 'nestbox-cold-empty', 'nestbox-cold-shared-loopback', 'unsandboxed']
    const floors = ['floor-bare', 'floor-warm', 'floor-cold']
    const peers = ['execa', 'bwrap', 'unshare', 'crun', 'runc', ...Object.keys(context.programs.peers)]
    return compare(context, plain(['spawn', ...ours, ...floors, ...peers]))
  },
}

/** Without pauses what is made in the background costs what comes next; and nothing that was made ahead lasts. */
export const backToBack: Scenario = {
  name: 'back-to-back',
  what: 'the same, each launch right after the one before, in long rows: sustained load',
  run: (context) => {
    const { sustained } = context.settings
    const modes = ['nestbox', 'nestbox-warm-4', 'nestbox-cold', 'nestbox-cold-shared-loopback', 'spawn', 'floor-cold']
    return compare(context, plain(modes), { turn: sustained, launches: 16 * sustained, pause: 0 })
  },
}

/** Enough launches to know the slowest in a thousand. */
export const tail: Scenario = {
  name: 'tail',
  what: 'so many launches that the slowest in a thousand are known',
  run: (context) => compare(context, plain(['nestbox', 'spawn', 'floor-warm']), { launches: context.settings.tail }),
}

/** A launch of these takes as long as a hundred of the others. */
const FEWER = 8

export const prewarm: Scenario = {
  name: 'prewarm',
  what: 'a Python interpreter that imports some modules, and is given its work: started for it, or ahead of it',
  run: (context) => {
    const launches = Math.ceil(context.settings.launches / FEWER)
    return compare(context, plain(['slow-spawn', 'slow-nestbox', 'slow-prewarmed']), { launches, warmUp: 1, turn: 2 })
  },
}

export const capture: Scenario = {
  name: 'capture',
  what: 'a trivial static program that writes a line, stdout and stderr captured',
  run: (context) => compare(context, plain(['execFile', 'nestbox-capture', 'nestbox-cold-capture', 'execa-capture'])),
}
