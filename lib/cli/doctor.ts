// `nestbox doctor`: the report as a table, with ready fixes, or as JSON.

import { parseArgs } from 'node:util'

import { doctor } from '../doctor/doctor.ts'
import type { DoctorBlocker, DoctorCheck, DoctorReport } from '../doctor/types.ts'
import { UsageError } from './exit.ts'
import { doctorHelp } from './help.ts'
import { pad, type Paint, paintFor, write } from './terminal.ts'

/** Carries out the command; returns what to exit with: 0 if programs can be launched, else 1. */
export const doctorCommand = async (argv: readonly string[]): Promise<number> => {
  const { json = false, verbose = false, help = false } = parse(argv)
  if (help) {
    await write(process.stdout, doctorHelp())
    return 0
  }
  const report = await doctor()
  const text = json ? `${JSON.stringify(report, undefined, 2)}\n` : render(report, verbose, paintFor(process.stdout))
  await write(process.stdout, text)
  return report.ok ? 0 : 1
}

const parse = (argv: readonly string[]): { json?: boolean; verbose?: boolean; help?: boolean } => {
  const flag = { type: 'boolean' } as const
  try {
    const options = { json: flag, verbose: flag, help: { ...flag, short: 'h' } } as const
    return parseArgs({ args: [...argv], options }).values
  } catch (error) {
    throw new UsageError((error as Error).message, { cause: error })
  }
}

/** The report for people. */
export const render = (report: DoctorReport, verbose: boolean, paint: Paint): string => {
  const { nestbox, node, kernel, arch, uid } = report.system
  const lines = [
    paint.dim(`nestbox ${nestbox}, Node.js ${node}, Linux ${kernel} (${arch}), uid ${uid}`),
    '',
    ...table(report.checks, paint),
    '',
    verdict(report, paint),
  ]
  // A fix for what nothing needs is for those who ask.
  for (const blocker of report.blockers) {
    if (blocker.required || verbose) lines.push('', ...describe(blocker, paint))
  }
  if (verbose) {
    lines.push('', paint.bold('Settings'))
    const width = Math.max(...Object.keys(report.settings).map((name) => name.length))
    for (const [name, value] of Object.entries(report.settings)) {
      lines.push(`  ${pad(name, width)}  ${value ?? paint.dim('not on this system')}`)
    }
  }
  return `${lines.join('\n')}\n`
}

const verdict = ({ ok, blockers }: DoctorReport, paint: Paint): string => {
  if (ok) {
    const more = blockers.length === 0 ? '' : ` Optional things are missing; --verbose says what would bring them.`
    return paint.green(`Programs can be launched by the default policy.${more}`)
  }
  return paint.red('Programs cannot be launched by the default policy.')
}

const table = (checks: readonly DoctorCheck[], paint: Paint): string[] => {
  const width = Math.max(...checks.map(({ name }) => name.length))
  return checks.map((check) => {
    const name = pad(check.name, width)
    switch (check.status) {
      case 'ok':
        return `  ${paint.green('ok     ')}  ${name}  ${check.value ?? ''}`.trimEnd()
      case 'skipped':
        return `  ${paint.dim('skipped')}  ${name}  ${paint.dim(check.reason ?? '')}`
      case 'failed': {
        const mark = check.required ? paint.red('FAILED ') : paint.yellow('missing')
        const blocker = check.blocker === undefined ? '' : ` ${paint.bold(`[${check.blocker}]`)}`
        return `  ${mark}  ${name}  ${check.error?.message ?? ''}${blocker}`
      }
    }
  })
}

const describe = ({ name, hint, fixes }: DoctorBlocker, paint: Paint): string[] => [
  paint.bold(`[${name}]`),
  `  ${hint.charAt(0).toUpperCase()}${hint.slice(1)}.`,
  ...fixes.flatMap(({ title, text }) => [
    '',
    `  ${paint.cyan(title)}:`,
    ...text.split('\n').map((line) => `    ${line}`),
  ]),
]
