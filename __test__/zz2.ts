import { policy, Sandbox } from '../index.ts'
import { execFileSync } from 'node:child_process'
const s = await Sandbox.create(policy('host-system').bind('/tmp/atkd/atk', '/attack'))
for (const [what, cap] of [['inotify','300'],['timers','200000'],['queues','100'],['aio','200'],['pipes','100000'],['descriptors','5000']]) {
  const r = await s.spawn('/attack', ['exhaust', what!, cap!, 'hold'])
  for await (const l of r.lines()) { console.log('inside', l); break }
  console.log('host  ', execFileSync('/tmp/atkd/atk', ['exhaust', what!, '5']).toString().trim())
  const o = await s.run('/attack', ['exhaust', what!, '5']); console.log('other ', o.stdout)
  r.kill(); await r.result
  console.log('after  ', execFileSync('/tmp/atkd/atk', ['exhaust', what!, '5']).toString().trim())
}
process.exit(0)
