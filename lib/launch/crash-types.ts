// The types of a crash report. Written by hand, because they are the documentation.

/** One call on a stack. */
export interface CrashFrame {
  /** Where the call goes on when it returns; of the innermost one, where the thread was. In hexadecimal, as all numbers are. */
  readonly address: string
  /** The file that is mapped there, by its path inside. */
  readonly module?: string | undefined
  /** The address in that file: what `addr2line -e` takes. */
  readonly offset?: string | undefined
  /** The function, demangled. */
  readonly symbol?: string | undefined
  /** The source file, as the compiler wrote it down. */
  readonly file?: string | undefined
  readonly line?: number | undefined
  /** The function was inlined into that of the next frame, which has the same address. */
  readonly inlined?: boolean | undefined
}

/** A thread at its end. */
export interface CrashThread {
  /** Its id inside. */
  readonly tid: number
  /** The name that it gave itself: anything. */
  readonly name: string
  /** The signal hit this thread. */
  readonly crashed: boolean
  /** The general registers by name, in hexadecimal. */
  readonly registers: Readonly<Record<string, string>>
  /**
   * Its stack, innermost call first. Of a thread that died in the handler of a signal it goes on with what was interrupted (on
   * x64).
   */
  readonly frames: readonly CrashFrame[]
}

/** One mapping: a line of `/proc/PID/maps`. */
export interface CrashMap {
  readonly start: string
  readonly end: string
  /** Such as `r-xp`. */
  readonly permissions: string
  readonly offset: string
  /** Of the file inside, or a name in brackets. Empty: neither. */
  readonly path: string
}

/**
 * What a program was doing when it died of a signal. All of it is the program's own account: a hostile one can make its stack,
 * its names and its paths say anything. It is JSON.
 */
export interface CrashReport {
  /** Of a violation: SIGSYS, or SIGKILL where init killed the nest for it. */
  readonly signal: NodeJS.Signals
  /** `si_code`: the signal's reason; see sigaction(2). Absent if the kernel gave none. */
  readonly code?: number | undefined
  /** The address that could not be reached, or the instruction that could not be carried out. */
  readonly faultAddress?: string | undefined
  readonly arch: 'x64' | 'arm64'
  /** The one that crashed first; at most 64. */
  readonly threads: readonly CrashThread[]
  readonly maps: readonly CrashMap[]
  /**
   * What there was more of: `threads`; `stacks`, of which 256 KiB each are looked at; `frames`, of which 256 of the thread that
   * crashed and 64 of each other one are listed, beside those that were inlined into them; `maps`; `modules`, of which 48 are
   * looked at for names.
   */
  readonly truncated: {
    readonly threads: boolean
    readonly stacks: boolean
    readonly frames: boolean
    readonly maps: boolean
    readonly modules: boolean
  }
  /** Why there are no names, or nothing at all: the sandbox in which the crash was looked at failed. */
  readonly problem?: string | undefined
}
