// What `doctor()` reports: plain data, the same that `npx nestbox doctor --json` prints.

/** How one check came out. */
export interface DoctorCheck {
  /** A stable name: `'user-namespace'`, `'proc'`, `'launch'`. */
  readonly name: string
  /** A launch with the default policy needs it. */
  readonly required: boolean
  /** `'skipped'`: it was not tried; `reason` says why. */
  readonly status: 'ok' | 'failed' | 'skipped'
  /** What was found, where there is more to say than that it works: a version, a list. */
  readonly value?: string
  /** Why it was skipped. */
  readonly reason?: string
  /** What went wrong, and at what. */
  readonly error?: DoctorError
  /** The name of the {@link DoctorBlocker} that is to blame, if it is known. */
  readonly blocker?: string
}

/** What went wrong: the facts of a `SpawnError`. */
export interface DoctorError {
  readonly message: string
  /** errno's name; empty if no system call failed. */
  readonly errnoName: string
  readonly syscall: string
  readonly step: string
  readonly path?: string
  readonly hint?: string
}

/** A cause of failures, and what to do about it. */
export interface DoctorBlocker {
  /** A stable name: `'apparmor-userns'`, `'seccomp'`, `'masked-proc'`. */
  readonly name: string
  /** What is wrong and what to do, in one sentence: the same that a `SpawnError` says as its `hint`. */
  readonly hint: string
  /** The checks that failed for it. */
  readonly checks: readonly string[]
  /** One of them is required: without a fix nothing can be launched by the default policy. */
  readonly required: boolean
  /** Ready texts (commands, profiles, manifests), the best one first. */
  readonly fixes: readonly { readonly title: string; readonly text: string }[]
}

/** What {@link doctor} found. */
export interface DoctorReport {
  /** All that is required works: programs can be launched by the default policy. */
  readonly ok: boolean
  readonly system: {
    readonly nestbox: string
    readonly node: string
    readonly kernel: string
    readonly arch: string
    readonly uid: number
  }
  /** In the order in which a launch needs them. */
  readonly checks: readonly DoctorCheck[]
  /** Empty if nothing failed, or nothing is known about why. */
  readonly blockers: readonly DoctorBlocker[]
  /** The system's switches and limits, as it gives them; `null` is one that it does not have. */
  readonly settings: { readonly [name: string]: string | null }
}
