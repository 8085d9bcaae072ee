// What `--help` says.

import { EXIT } from './exit.ts'
import { LIMIT_OPTIONS } from './options.ts'
import { pad, paintFor } from './terminal.ts'

const heading = (text: string): string => paintFor(process.stdout).bold(text)

const OPTION_WIDTH = 28

const list = (rows: readonly (readonly [string, string])[]): string =>
  rows
    .map(([name, text]) => {
      // A long name has a line of its own.
      const gap = name.length < OPTION_WIDTH ? '' : `\n  ${' '.repeat(OPTION_WIDTH)}`
      return `  ${pad(name, OPTION_WIDTH)}${gap}${text}`.trimEnd()
    })
    .join('\n')

export const mainHelp = (): string => `Launch isolated Linux processes.

${heading('Usage')}
  nestbox run [options] [--] program [args...]   run one program in a sandbox
  nestbox doctor [--json] [--verbose]            can sandboxes run here? what to change?
  nestbox bench [--rounds N] [--heap SIZE]       what a launch takes on this machine
  nestbox schema                                 print the JSON schema of policy files
  nestbox --version

\`nestbox help COMMAND\`, or COMMAND --help, tells more.

${heading('Try')}
  nestbox run python3 -c 'print(6 * 7)'
`

const describeLimit = (limit: string): string => {
  switch (limit) {
    case 'wallTime':
      return 'from the start of the program; default 1m'
    case 'cpuTime':
      return 'of all processes together'
    case 'processes':
      return 'processes and threads at one time; default 128'
    case 'output':
      return 'stdout and stderr together, where they are captured (--json); default 10MiB'
    case 'disk':
      return 'of each tmpfs; default 64MiB'
    case 'fileSize':
      return 'of the largest file; default 1GiB'
    case 'openFiles':
      return 'of each process; default 1024'
    case 'addressSpacePerProcess':
      return 'programs reserve far more than they use'
    case 'stack':
      return 'of each main thread'
    case 'core':
      return 'of a core file; default 0'
    default:
      return ''
  }
}

export const runHelp = (): string => `Run one program in a sandbox, with this terminal as its own.

${heading('Usage')}
  nestbox run [options] [--] program [args...]

The program sees the host's system directories read-only, a private /tmp, a fresh /proc and nothing else: no files of
yours, no network, no environment. A bare name is looked up inside. Options end at the program's name.

${heading('What it sees')}
${list([
  ['--base NAME', "'host-system' (the default) or 'empty': nothing at all to begin with"],
  ['--policy FILE', 'a policy as JSON instead (- for stdin); the options here are laid over it'],
  ['', "a file that names no base has the base 'empty'"],
  ['--bind SRC[:PATH][:FLAGS]', 'show a host file or directory, read-only; flags: rw, exec, noexec, optional'],
  ['', 'flags are separated by commas; what is writable is not executable without exec: .:rw,exec'],
  ['--tmpfs PATH[:SIZE]', 'a private, empty, writable directory'],
  ['--file HOSTFILE:PATH', 'a private copy of a host file, below a tmpfs such as /tmp'],
  ['--copy-out PATH:HOSTFILE', 'bring a file out afterwards; HOSTFILE must not exist'],
  ['--symlink PATH:TARGET', 'a symbolic link'],
  ['--libraries-for BINARY', 'the shared libraries that a host binary needs'],
  ['--proc, --dev KIND', "'fresh' or 'none'; 'minimal' or 'none'"],
  ['--root-writable', 'let it write to its (private) root directory'],
  ['-e, --env NAME[=VALUE]', 'set a variable; without a value, to what it is here'],
  ['--cwd PATH', 'its working directory; default /tmp, with the base empty /'],
])}

${heading('What it may do')}
${list([
  ['--network KIND', "'none' (the default), 'shared-loopback', or 'host': no isolation of the network"],
  ['--unix-sockets KIND', "'none' (the default) or 'allow'"],
  ['--syscalls NAME', "'default', 'strict' (computation on open files only) or 'unfiltered'"],
  ['--user UID[:GID]', 'the ids that it sees as its own; default 1000'],
  ['--hostname NAME', "default 'nestbox'"],
  ['--core-scheduling', "keep everybody else's threads off its core while it runs; fails where that can't be had"],
  ['--allow-speculation', 'leave speculative execution as the host has it, which is faster'],
  ['--require NAME', 'fail without this protection'],
  ['--learn FILE', 'run it with every call allowed, and write the policy that allows just what it did'],
])}

${heading('Limits')}   times: 500ms 10s 2m 1h · sizes: 4096 64KiB 64MiB 1GiB · none lifts a limit
${list(LIMIT_OPTIONS.map(({ option, limit, unit }) => [`--${option} ${unit}`, describeLimit(limit)]))}

${heading('What is reported')}
${list([
  ['--json', 'print the result as JSON, with all output in it'],
  ['--json-file FILE, --json-fd N', 'the same beside the output, which goes where it always does'],
  ['--stats', 'one line on stderr about time and memory'],
  ['--print-policy', 'print the policy that the options mean, and run nothing'],
  ['-q, --quiet', 'nothing of our own on stderr'],
  ['-h, --help', 'this text'],
])}

${heading('Exit code')}
  The program's own, or
${list([
  [`${EXIT.usage}`, 'the command line or the policy is wrong'],
  [`${EXIT.violation}`, 'the program made a system call that its policy forbids'],
  [`${EXIT.output}`, 'it ended well, but a --copy-out failed'],
  [`${EXIT.limit}`, 'a limit ended it'],
  [`${EXIT.internal}`, 'the sandbox could not be set up; try `nestbox doctor`'],
  [`${EXIT.notExecutable}, ${EXIT.notFound}`, 'the program is not executable, is not there'],
  [`${EXIT.signal} + N`, 'signal N ended it'],
])}
  Programs may exit with these, too: --json tells them apart.

${heading('Examples')}
  nestbox run --bind .:rw,exec --cwd "$PWD" --wall-time 10s make test
  nestbox run --file main.c:/tmp/main.c --copy-out /tmp/main:./main gcc -o /tmp/main /tmp/main.c
  nestbox run --bind ./data:/data:rw --print-policy > policy.json
  nestbox run --policy policy.json --json ls -l /data
  nestbox run --learn sort.json sort -r < list.txt && nestbox run --policy sort.json sort -r < list.txt
`

export const doctorHelp = (): string => `Examine whether sandboxes can run on this system.

${heading('Usage')}
  nestbox doctor [options]

Tries every namespace, the id maps, mounts, syscall filters, Landlock, cgroups and a whole launch, each in a process
that is thrown away. For what fails it names the cause and prints what to change. Changes nothing itself.

${heading('Options')}
${list([
  ['--json', 'the report as JSON'],
  ['--verbose', 'also the fixes of what is optional, and the settings of the system'],
])}

${heading('Exit code')}
  0 if programs can be launched by the default policy, else 1.
`

export const benchHelp = (): string => `Measure what a launch takes on this machine.

${heading('Usage')}
  nestbox bench [options]

Launches \`true\` in turns by child_process.execFile, by sandbox.run (isolated) and by unsandboxed.run.

${heading('Options')}
${list([
  ['--rounds N', 'launches of each; default 100'],
  ['--heap SIZE', 'memory that this process has and touches first, such as 1GiB'],
  ['--json', 'the times as JSON'],
])}
`

export const schemaHelp = (): string => `Print the JSON schema of policy files.

${heading('Usage')}
  nestbox schema > policy.schema.json

It is in the package, too. Editors check and complete a file that names it:

  {
    "$schema": "./node_modules/nestbox/policy.schema.json",
    "version": 1,
    "base": "host-system",
    "mounts": [{ "type": "bind", "source": "/srv/data", "path": "/data" }],
    "limits": { "wallTime": 10000, "disk": "16MiB" }
  }

What a file leaves out has its default. \`nestbox run --print-policy\` prints a whole one.
`
