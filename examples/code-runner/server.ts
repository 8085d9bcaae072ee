// A web page on which visitors run their own code: `node --import @oxc-node/core/register examples/code-runner/server.ts`.
//
// Each run is a launch of its own in one sandbox, which bounds what a run may take (limits) and how many there are at a time
// (queue). The code goes in as a private file, so nothing has to be cleaned up.

import { existsSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { fileURLToPath } from 'node:url'

import { policy, QueueFullError, Sandbox } from 'nestbox'

/** What visitors may choose. Those whose program is not installed are left out. */
const LANGUAGES = [
  { name: 'Python', needs: '/usr/bin/python3', file: '/tmp/main.py', command: ['python3', '/tmp/main.py'] },
  { name: 'JavaScript', needs: '/usr/bin/node', file: '/tmp/main.mjs', command: ['node', '/tmp/main.mjs'] },
  {
    name: 'C',
    needs: '/usr/bin/gcc',
    file: '/tmp/main.c',
    command: ['sh', '-c', 'gcc -O1 -o /tmp/main /tmp/main.c && exec /tmp/main'],
  },
  { name: 'Shell', needs: '/bin/sh', file: '/tmp/main.sh', command: ['sh', '/tmp/main.sh'] },
].filter(({ needs }) => existsSync(needs))

const LARGEST_REQUEST = 64 * 1024

const POLICY = policy('host-system').limits({
  wallTime: 5000,
  cpuTime: 3000,
  processes: 64,
  output: '256KiB',
  disk: '32MiB',
  fileSize: '32MiB',
})

/** The page brings all of its own, and may load nothing else. */
const CONTENT_SECURITY_POLICY =
  "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"

/** What the page asks for. */
interface RunRequest {
  readonly language: string
  readonly code: string
  readonly input: string
}

class BadRequest extends Error {}

const readBody = async (request: IncomingMessage): Promise<string> => {
  const chunks: Buffer[] = []
  let length = 0
  for await (const chunk of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    length += chunk.length
    if (length > LARGEST_REQUEST) throw new BadRequest('That is too long.')
    chunks.push(chunk)
  }
  return Buffer.concat(chunks).toString()
}

const parse = (body: string): RunRequest => {
  let value: unknown
  try {
    value = JSON.parse(body)
  } catch {
    throw new BadRequest('That is not JSON.')
  }
  const { language, code, input = '' } = (value ?? {}) as Partial<Record<keyof RunRequest, unknown>>
  if (typeof language !== 'string' || typeof code !== 'string' || typeof input !== 'string') {
    throw new BadRequest('There must be a language and code.')
  }
  return { language, code, input }
}

const send = (response: ServerResponse, status: number, value: unknown): void => {
  response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(value))
}

/** Runs what a visitor wrote. */
const handleRun = async (sandbox: Sandbox, request: IncomingMessage, response: ServerResponse): Promise<void> => {
  const { language: name, code, input } = parse(await readBody(request))
  const language = LANGUAGES.find((known) => known.name === name)
  if (language === undefined) throw new BadRequest('There is no such language here.')
  const [file = '', ...args] = language.command
  // Nobody reads the result of a visitor who has left.
  const gone = new AbortController()
  response.once('close', () => gone.abort())
  const result = await sandbox.run(file, args, {
    files: { [language.file]: code },
    input,
    signal: gone.signal,
    onOverflow: 'keep-head',
  })
  const { status, stdout, stderr, timings, durationMs, resourceUsage } = result
  send(response, 200, {
    status,
    ...(result.status === 'exited' ? { exitCode: result.exitCode } : {}),
    ...(result.status === 'limit-exceeded' ? { limit: result.limit } : {}),
    ...('signal' in result ? { signal: result.signal } : {}),
    stdout,
    stderr,
    durationMs,
    timings,
    peakMemoryBytes: resourceUsage.peakMemoryBytes,
  })
}

const handle = async (sandbox: Sandbox, request: IncomingMessage, response: ServerResponse): Promise<void> => {
  const route = `${request.method} ${new URL(request.url ?? '/', 'http://localhost').pathname}`
  if (route === 'GET /') {
    const headers = { 'content-type': 'text/html; charset=utf-8', 'content-security-policy': CONTENT_SECURITY_POLICY }
    response.writeHead(200, headers).end(await readFile(new URL('page.html', import.meta.url)))
  } else if (route === 'GET /languages') {
    send(
      response,
      200,
      LANGUAGES.map(({ name }) => name),
    )
  } else if (route === 'POST /run') {
    await handleRun(sandbox, request, response)
  } else {
    send(response, 404, { error: 'There is nothing here.' })
  }
}

const statusOf = (error: unknown): number => {
  if (error instanceof BadRequest) return 400
  return error instanceof QueueFullError ? 503 : 500
}

const messageOf = (error: unknown): string => {
  if (error instanceof BadRequest) return error.message
  return error instanceof QueueFullError ? 'Too many others are running code just now.' : 'It failed.'
}

/** The server, not listening yet. Closing it ends the sandbox. */
export const codeRunner = async (): Promise<Server> => {
  const sandbox = await Sandbox.create(POLICY, { maxConcurrency: 4, maxQueue: 32, queueTimeout: 10_000, warm: 2 })
  const server = createServer((request, response) => {
    handle(sandbox, request, response).catch((error: unknown) => {
      const status = statusOf(error)
      if (status === 500 && !response.destroyed) console.error(error)
      if (response.headersSent) return
      // What is left of a request that was too long is not read.
      response.setHeader('connection', 'close')
      send(response, status, { error: messageOf(error) })
    })
  })
  server.once('close', () => void sandbox.destroy())
  return server
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const server = await codeRunner()
  server.listen(Number(process.env['PORT'] ?? 8080), '127.0.0.1', () => {
    console.log('http://127.0.0.1:%d', (server.address() as { port: number }).port)
  })
}
