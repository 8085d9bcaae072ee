import { policy, Sandbox, unsandboxed } from '../index.ts'
const [how, ...args] = process.argv.slice(2)
const prog = '/tmp/atkd/atk'
if (how === 'out') { const r = await unsandboxed.run(prog, args, { env: {} , timeout: 20000}); console.log(r.stdout, r.stderr, r.status, 'exitCode' in r ? r.exitCode : '') }
else {
  const s = await Sandbox.create(policy('host-system').bind(prog, '/attack').syscalls(how as 'default'))
  const t0 = performance.now()
  const r = await s.run('/attack', args, {timeout: 30000}); console.log(r.stdout, r.stderr, r.status, (r as any).exitCode ?? (r as any).signal, performance.now()-t0)
}
process.exit(0)
