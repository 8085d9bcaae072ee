// Makes events and hands them to `receive`. A result is made from numbers that the addon writes into `numbers`, in the order in
// which they are read here (see result.rs); what is absent comes as null. One call with a few arguments instead of one Node-API
// call for each property, and all results have one hidden class.
'use strict'
;(numbers, { steps, namespaces, networks, filters, limits }, receive) => {
  const plain = (kind, pid, failure) => {
    receive({
      kind,
      token: numbers[0],
      pid: pid ?? undefined,
      failure: failure ?? undefined,
      asked: undefined,
      ended: undefined,
    })
  }

  const asked = (question) => {
    receive({ kind: 'asked', token: numbers[0], pid: undefined, failure: undefined, asked: question, ended: undefined })
  }

  // By their bits: there are few combinations.
  const combinations = []
  const namespacesOf = (bits) =>
    (combinations[bits] ??= Object.freeze(namespaces.filter((_, index) => (bits & (1 << index)) !== 0)))

  const ended = (stdout, stderr, outputs, skipped, violation, learned, crash) => {
    const end = 29 + 2 * numbers[28]
    const done = []
    let before = numbers[18]
    for (let index = 29; index < end; index += 2) {
      const at = numbers[index + 1]
      done.push({ step: steps[numbers[index]], ms: at > before ? (at - before) / 1e6 : 0 })
      before = at
    }
    const result = {
      pid: numbers[1],
      initPid: numbers[2],
      ending: numbers[4] === 0 ? 'exited' : 'signaled',
      status: numbers[5],
      limit: limits[numbers[6]] ?? undefined,
      killedByHost: numbers[7] !== 0,
      violated: numbers[25] !== 0,
      violation: violation ?? undefined,
      learned: learned ?? undefined,
      diskFull: numbers[8] !== 0,
      stdout: stdout ?? undefined,
      stderr: stderr ?? undefined,
      stdoutBytes: numbers[9],
      stderrBytes: numbers[10],
      userCpuUs: numbers[11],
      systemCpuUs: numbers[12],
      maxRssKib: numbers[13],
      minorFaults: numbers[14],
      majorFaults: numbers[15],
      voluntarySwitches: numbers[16],
      involuntarySwitches: numbers[17],
      submittedNs: numbers[18],
      execNs: numbers[19],
      endedNs: numbers[20],
      steps: done,
      outputs: outputs ?? [],
      skipped: skipped ?? [],
      namespaces: namespacesOf(numbers[3]),
      network: networks[numbers[21]],
      noNewPrivs: numbers[22] !== 0,
      filter: filters[numbers[23]],
      landlockAbi: numbers[26],
      landlockScopes: numbers[27],
      warm: numbers[24] !== 0,
      crash: crash ?? undefined,
    }
    receive({ kind: 'ended', token: numbers[0], pid: undefined, failure: undefined, asked: undefined, ended: result })
  }
  return { plain, asked, ended }
}
