// What people run: it works under the default policy, filter and limits, without being told anything.

import { existsSync, readdirSync } from 'node:fs'

import test from 'ava'

import { policy, run, Sandbox, syscallFilter } from '../index.ts'
import { sh } from './inside.ts'

/** A program of the host's system directories, which are all that a sandbox sees. */
const system = (name: string): boolean =>
  ['/usr/local/bin', '/usr/bin', '/bin'].some((at) => existsSync(`${at}/${name}`))

/** The programs here are as real as they are optional: one that is not installed is said to be, not passed over. */
const needs = (name: string) => (system(name) ? test : test.skip)

test('a pipeline of the shell', async (t) => {
  const result = await sh(
    { run },
    'seq 1000 | grep 7 | sort -rn | head -3 | tr "\\n" " " && echo "$(uname -s)" | sed s/L/l/',
  )
  t.is(result.stdout, '997 987 979 linux')
  t.is(result.stderr, '')
})

test('the usual tools', async (t) => {
  const script = `set -e
    cd /tmp; mkdir -p a/b; echo x > a/b/c; cp -a a d; mv d e; ln -s a link; ln a/b/c hard; find . -name c | sort
    tar cf - a | tar tf - | wc -l; gzip < a/b/c | gzip -d; date +%Y > /dev/null; ls -l > /dev/null; df . > /dev/null
    awk 'BEGIN { print 6 * 7 }'; ps > /dev/null 2>&1 || true; mktemp > /dev/null; touch -d 2001-01-01 f; stat -c %y f | cut -d- -f1
    timeout 5 sleep 0.01; nice true; env -i /usr/bin/env; xargs -n1 echo < a/b/c; test "$(id -u)" = 1000; rm -rf a e; wait`
  const result = await sh({ run }, script)
  t.is(result.stderr, '')
  t.is(result.stdout, './a/b/c\n./e/b/c\n3\nx\n42\n2001\nx')
})

const magick = ['/usr/bin/magick', '/usr/bin/convert'].find((file) => existsSync(file))
const needsMagick = magick === undefined ? test.skip : test

needsMagick('ImageMagick: draws, converts and looks, with threads of its own', async (t) => {
  await using sandbox = await Sandbox.create(policy('host-system'))
  const drawn = ['-size', '64x48', 'gradient:red-blue', '-blur', '0x2', '-resize', '50%']
  const made = await sandbox.run(magick ?? '', [...drawn, '/tmp/made.png'], {
    outputs: { image: { path: '/tmp/made.png', maxBytes: '1MiB' } },
  })
  t.like(made, { status: 'exited', exitCode: 0, stderr: '' })
  const { image } = made.outputs
  t.is(Buffer.from(image.subarray(1, 4)).toString(), 'PNG')
  const converted = await sandbox.run(magick ?? '', ['/tmp/made.png', '-flip', '-format', '%m %wx%h', 'info:'], {
    files: { '/tmp/made.png': image },
  })
  t.like(converted, { status: 'exited', exitCode: 0, stdout: 'PNG 32x24', stderr: '' })
})

needs('python3')('python: subprocesses, threads, processes, files, sockets', async (t) => {
  const source = `
import subprocess, threading, multiprocessing, tempfile, os, json, hashlib, socket, random, time, sqlite3, asyncio, signal
print(subprocess.run(["echo", "sub"], capture_output=True, text=True).stdout.strip())
found = []
threads = [threading.Thread(target=lambda n=n: found.append(n)) for n in range(20)]
[x.start() for x in threads]; [x.join() for x in threads]
print(sorted(found) == list(range(20)))
with multiprocessing.Pool(3) as pool: print(pool.map(abs, [-1, -2, -3]))
with tempfile.NamedTemporaryFile("w+") as f: f.write("x"); f.seek(0); print(f.read())
a, b = socket.socketpair(); a.send(b"pair"); print(b.recv(9).decode())
async def main():
    p = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
    print((await p.communicate(b"async"))[0].decode())
asyncio.run(main())
db = sqlite3.connect("/tmp/x.db"); db.execute("create table t (v)"); db.execute("insert into t values (7)"); db.commit()
print(db.execute("select v from t").fetchone()[0])
signal.setitimer(signal.ITIMER_REAL, 0.01); signal.signal(signal.SIGALRM, lambda *_: print("alarm")); time.sleep(0.1)
print(os.cpu_count() > 0, len(os.urandom(4)))
`
  const result = await run('python3', ['-c', source])
  t.is(result.stderr, '')
  t.deepEqual(result.stdout.split('\n'), ['sub', 'True', '[1, 2, 3]', 'x', 'pair', 'async', '7', 'alarm', 'True 4'])
})

const C = `
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
static void *work(void *n) { return (void *)(*(long *)n * 2); }
int main(void) {
  pthread_t t; long n = 21; void *r;
  pthread_create(&t, 0, work, &n); pthread_join(t, &r);
  char *p = malloc(50000000); p[49999999] = 1;
  printf("%ld\\n", (long)r);
  return 0;
}
`

needs('gcc')('gcc: compile and run', async (t) => {
  const sandbox = await Sandbox.create(policy('host-system').limits({ disk: '256MiB' }))
  const compiled = await sh(sandbox, 'gcc -Wall -O2 -pthread -o /tmp/program /tmp/main.c', {
    files: { '/tmp/main.c': C },
    outputs: { program: { path: '/tmp/program', maxBytes: '10MiB' } },
  })
  t.is(compiled.stderr, '')
  t.false(compiled.failed)
  // /tmp is noexec: what was compiled runs in a policy that shows it as a program.
  const ran = await Sandbox.create(policy('host-system').file('/program', compiled.outputs.program, { mode: 0o755 }))
  t.like(await ran.run('/program'), { status: 'exited', exitCode: 0, stdout: '42' })
})

needs('git')('git: a repository', async (t) => {
  const script = `set -e
    cd /tmp; git init -q repo; cd repo; git config user.email a@b; git config user.name n
    echo x > f; git add f; git commit -q -m first; echo y >> f; git diff --stat | tail -1; git commit -qam second
    git log --oneline | wc -l; git gc -q; git clone -q /tmp/repo /tmp/copy; cat /tmp/copy/f; git -C /tmp/copy rev-list --count HEAD`
  const result = await sh({ run }, script)
  t.is(result.stderr, '')
  t.is(result.stdout, ' 1 file changed, 1 insertion(+)\n2\nx\ny\n2')
})

needs('node')('node: threads, children, streams', async (t) => {
  const source = `
const { execFileSync } = require('node:child_process')
const { Worker } = require('node:worker_threads')
const { readFileSync, writeFileSync, promises } = require('node:fs')
const http = require('node:http')
console.log(execFileSync('echo', ['child']).toString().trim())
writeFileSync('/tmp/a', 'file'); console.log(readFileSync('/tmp/a', 'utf8'))
new Worker("require('node:worker_threads').parentPort.postMessage('worker')", { eval: true }).on('message', (m) => {
  console.log(m)
  const server = http.createServer((q, r) => r.end('http')).listen(0, '127.0.0.1', async () => {
    console.log(await (await fetch('http://127.0.0.1:' + server.address().port)).text())
    server.close()
  })
})`
  const result = await run('node', ['-e', source])
  t.is(result.stderr, '')
  t.is(result.stdout, 'child\nfile\nworker\nhttp')
})

const JAVA = `
public class Main {
  public static void main(String[] args) throws Exception {
    Thread thread = new Thread(() -> System.out.println("thread"));
    thread.start();
    thread.join();
    Process process = new ProcessBuilder("echo", "sub").start();
    System.out.println(new String(process.getInputStream().readAllBytes()).trim());
    try (var server = new java.net.ServerSocket(0, 1, java.net.InetAddress.getLoopbackAddress());
         var client = new java.net.Socket(server.getInetAddress(), server.getLocalPort())) {
      System.out.println(client.isConnected());
    }
  }
}
`

needs('javac')('java: compile and run, threads, subprocesses, sockets', async (t) => {
  // Debian's has its settings in /etc, where a JVM looks by a symlink of its own.
  const settings = readdirSync('/etc').filter((name) => name.startsWith('java'))
  const base = policy('host-system')
  const sandbox = await Sandbox.create(settings.reduce((all, name) => all.bind(`/etc/${name}`), base))
  const result = await sandbox.run('java', ['/tmp/Main.java'], { files: { '/tmp/Main.java': JAVA } })
  t.is(result.stderr, '')
  t.is(result.stdout, 'thread\nsub\ntrue')
})

needs('busybox')('busybox: a shell of its own, jobs and pipes', async (t) => {
  const script = 'echo a | busybox tr a b; (busybox sleep 0.01 & wait); busybox seq 3 | busybox tail -1'
  t.is((await run('busybox', ['sh', '-c', script])).stdout, 'b\n3')
})

needs('perl')('perl', async (t) => {
  t.is(
    (await run('perl', ['-e', 'print join(",", map { $_ ** 2 } 1..4), "\\n"; print `echo sub`'])).stdout,
    '1,4,9,16\nsub',
  )
})

needs('make')('make, with jobs', async (t) => {
  const makefile = 'all: a b c\n\techo done\na b c:\n\techo $@ > $@\n'
  const result = await sh({ run }, 'make -s -j3 && cat a b c', { files: { '/tmp/Makefile': makefile } })
  t.is(result.stdout, 'done\na\nb\nc')
})

needs('bash')('bash: process substitution, here documents, job control', async (t) => {
  const script = 'diff <(seq 3) <(seq 4) | tail -1; cat <<< here; sleep 0.01 & wait $!; echo $?; printf "%s" {a..e}'
  t.is((await run('bash', ['-c', script])).stdout, '> 4\nhere\n0\nabcde')
})

/** Programs with what they do, each of another kind. */
const PROGRAMS: readonly (readonly [string, ...string[]])[] = [
  [
    'sh',
    '-c',
    'seq 100 | grep 7 | sort -rn | head -1; mkdir /tmp/a; cp -a /bin/sh /tmp/a; df . ; ls -la /tmp; rm -r /tmp/a',
  ],
  [
    'python3',
    '-c',
    'import subprocess as s, threading as t; s.run("true"); x = t.Thread(target=print); x.start(); x.join()',
  ],
  [
    'node',
    '-e',
    'new (require("worker_threads").Worker)("1", { eval: true }); require("child_process").execSync("true")',
  ],
  ['git', 'init', '-q', '/tmp/repo'],
  ['gcc', '-O2', '-x', 'c', '-shared', '-o', '/tmp/empty.so', '/dev/null'],
  ['java', '-version'],
  ['perl', '-e', 'fork or exit; wait; print `true`'],
  ['busybox', 'sh', '-c', 'busybox seq 3 | busybox tail -1'],
]

test('none of them makes a call that the default filter does not list', async (t) => {
  const filter = syscallFilter().preset('default').otherwise('kill')
  const sandbox = await Sandbox.create(policy('host-system').syscalls(filter).limits({ disk: '256MiB' }))
  const installed = PROGRAMS.filter(([name]) => system(name))
  t.true(installed.length > 1)
  for (const [name, ...args] of installed) {
    // One after the other: they are large.
    // oxlint-disable-next-line no-await-in-loop
    const result = await sandbox.run(name, args)
    t.like(result, { status: 'exited', exitCode: 0 }, `${name}: ${result.stderr}`)
  }
})
