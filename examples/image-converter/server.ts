// An HTTP service that converts images with ImageMagick, one sandbox for each request:
//
//   curl --data-binary @photo.heic 'http://127.0.0.1:8081/convert?to=webp&size=640' -o photo.webp
//
// ImageMagick reads more than two hundred formats, and some of them can name other files. In here it finds the system's
// programs, the image, and nothing of anybody else's; what it leaves behind is gone with its nest.

import { existsSync } from 'node:fs'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { fileURLToPath } from 'node:url'

import { policy, QueueFullError, Sandbox } from 'nestbox'

/** ImageMagick 7's program, or else version 6's. By path: what the host's PATH may put before it is not what is inside. */
const PROGRAM = ['/usr/bin/magick', '/usr/bin/convert'].find((file) => existsSync(file))

/** Whether there is an ImageMagick to isolate. */
export const isInstalled = PROGRAM !== undefined

const TYPES: Readonly<Record<string, string>> = {
  gif: 'image/gif',
  jpeg: 'image/jpeg',
  png: 'image/png',
  webp: 'image/webp',
}

const LARGEST_UPLOAD = 32 * 1024 * 1024
const LARGEST_RESULT = '32MiB'

const POLICY = policy('host-system')
  // ImageMagick's own settings, which are harmless and not part of the base.
  .bind('/etc/ImageMagick-6', undefined, { optional: true })
  .bind('/etc/ImageMagick-7', undefined, { optional: true })
  .limits({
    wallTime: 20_000,
    cpuTime: 20_000,
    processes: 32,
    disk: '512MiB',
    addressSpacePerProcess: '2GiB',
    output: '64KiB',
  })

class BadRequest extends Error {}

const readBody = async (request: IncomingMessage): Promise<Buffer> => {
  const chunks: Buffer[] = []
  let length = 0
  for await (const chunk of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    length += chunk.length
    if (length > LARGEST_UPLOAD) throw new BadRequest('The image is too large.')
    chunks.push(chunk)
  }
  return Buffer.concat(chunks)
}

const convert = async (sandbox: Sandbox, url: URL, request: IncomingMessage, response: ServerResponse) => {
  const to = url.searchParams.get('to') ?? 'png'
  const type = TYPES[to]
  if (type === undefined) throw new BadRequest(`The target must be one of ${Object.keys(TYPES).join(', ')}.`)
  const size = Number(url.searchParams.get('size') ?? 1024)
  if (!(Number.isInteger(size) && size >= 1 && size <= 4096)) throw new BadRequest('The size must be 1 to 4096.')
  // Some formats can't be told by their content. Anyone may name any of them, which only a sandbox makes harmless.
  const from = url.searchParams.get('from') ?? ''
  if (!/^[a-z0-9]{0,8}$/.test(from)) throw new BadRequest('The source format must be letters and digits.')
  const source = from === '' ? '/tmp/upload' : `${from}:/tmp/upload`

  const body = await readBody(request)
  const gone = new AbortController()
  response.once('close', () => gone.abort())
  const args = [source, '-auto-orient', '-resize', `${size}x${size}>`, '-strip', `${to}:/tmp/converted`]
  const result = await sandbox.run(PROGRAM ?? 'convert', args, {
    files: { '/tmp/upload': body },
    outputs: { image: { path: '/tmp/converted', maxBytes: LARGEST_RESULT } },
    signal: gone.signal,
    onOverflow: 'keep-head',
  })
  // A broken image is the sender's fault, and its message tells nothing of this host.
  if (result.failed) {
    const reason = result.status === 'limit-exceeded' ? `It took more than its ${result.limit}.` : result.stderr
    response.writeHead(422, { 'content-type': 'text/plain; charset=utf-8' }).end(`${reason}\n`)
    return
  }
  const setup = `setup;dur=${result.timings.setupMs.toFixed(2)}, convert;dur=${result.timings.execMs.toFixed(2)}`
  response.writeHead(200, { 'content-type': type, 'server-timing': setup }).end(result.outputs.image)
}

const statusOf = (error: unknown): number => {
  if (error instanceof BadRequest) return 400
  return error instanceof QueueFullError ? 503 : 500
}

/** The server, not listening yet. Closing it ends the sandbox. */
export const imageConverter = async (): Promise<Server> => {
  const sandbox = await Sandbox.create(POLICY, { maxConcurrency: 4, maxQueue: 32, queueTimeout: 10_000 })
  const server = createServer((request, response) => {
    const url = new URL(request.url ?? '/', 'http://localhost')
    const work =
      request.method === 'POST' && url.pathname === '/convert'
        ? convert(sandbox, url, request, response)
        : Promise.reject(new BadRequest('Send an image to /convert by POST.'))
    work.catch((error: unknown) => {
      const status = statusOf(error)
      if (status === 500 && !response.destroyed) console.error(error)
      if (response.headersSent) return
      response.writeHead(status, { 'content-type': 'text/plain; charset=utf-8', connection: 'close' })
      response.end(error instanceof BadRequest ? `${error.message}\n` : undefined)
    })
  })
  server.once('close', () => void sandbox.destroy())
  return server
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  if (!isInstalled) console.error('ImageMagick is not installed: every conversion will fail.')
  const server = await imageConverter()
  server.listen(Number(process.env['PORT'] ?? 8081), '127.0.0.1', () => {
    console.log('http://127.0.0.1:%d/convert', (server.address() as { port: number }).port)
  })
}
