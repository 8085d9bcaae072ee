import { policy, Sandbox } from '../index.ts'
for (const n of ['none', 'shared-loopback', 'host','shared-loopback'] as const) {
 try { const s = await Sandbox.create(policy('host-system').network(n)); console.log(n, (await s.run('true')).status) } catch (e) { console.log(n, String(e)) }
}
process.exit(0)
