// Work that a launch hands to its program over the comms channel.

import test from 'ava'

import { policy, RequestError, Sandbox, unsandboxed } from '../index.ts'

/** Reads its work to the end, and says it in brackets. */
const ECHO = ['-c', 'echo "[$(cat <&1023)]"']

test('work is what the program reads from its channel, to the end of file', async (t) => {
  const sandbox = await Sandbox.create(policy('host-system'))
  t.is((await sandbox.run('bash', ECHO, { work: 'some work' })).stdout, '[some work]')
  t.is((await sandbox.run('bash', ECHO, { work: new TextEncoder().encode('bytes') })).stdout, '[bytes]')
  t.like(await sandbox.run('bash', ECHO, { work: '' }), { stdout: '[]', exitCode: 0 })
  const much = await sandbox.run('bash', ['-c', 'wc -c <&1023'], { work: new Uint8Array(5 * 1024 * 1024) })
  t.is(much.stdout, String(5 * 1024 * 1024))
  const outside = await unsandboxed.run('bash', ECHO, { work: 'outside', env: { PATH: '/usr/bin:/bin' } })
  t.is(outside.stdout, '[outside]')
})

test('work that nobody reads is no error, and what comes back is dropped', async (t) => {
  const sandbox = await Sandbox.create(policy('host-system'))
  const work = new Uint8Array(5 * 1024 * 1024)
  t.like(await sandbox.run('true', [], { work }), { exitCode: 0 })
  t.like(await sandbox.run('bash', ['-c', 'exec 1023>&-; echo done'], { work }), { exitCode: 0, stdout: 'done' })
  const answers = await sandbox.run('bash', ['-c', 'head -c 5000000 /dev/zero >&1023; echo $?'], { work: 'x' })
  t.like(answers, { exitCode: 0, stdout: '0' })
})

test('spawn: with comms the channel stays open, without it is nobody’s', async (t) => {
  const sandbox = await Sandbox.create(policy('host-system'))
  const lines = 'while read line <&1023; do echo "got $line" >&1023; done; echo over'
  const talking = await sandbox.spawn('bash', ['-c', lines], { comms: true, work: 'first\n', buffer: true })
  const { comms } = talking
  const answer = (): Promise<string> =>
    new Promise((resolve) => {
      comms.once('data', (data: Buffer) => resolve(data.toString()))
    })
  t.is(await answer(), 'got first\n')
  comms.write('second\n')
  t.is(await answer(), 'got second\n')
  comms.end()
  t.like(await talking.result, { exitCode: 0, stdout: 'over' })

  const silent = await sandbox.spawn('bash', ['-c', lines], { work: 'first\n', buffer: true })
  t.is(silent.comms, undefined)
  t.like(await silent.result, { exitCode: 0, stdout: 'over' })
})

test('what can’t be work is refused', async (t) => {
  const sandbox = await Sandbox.create(policy('host-system'))
  await t.throwsAsync(sandbox.run('cat', [], { work: 5 as never }), { instanceOf: RequestError })
  await t.throwsAsync(sandbox.run('cat', [], { work: 'x', comms: true }), { instanceOf: RequestError })
})
