// A headless browser for tests of web pages: Chromium, spoken to in its DevTools protocol over a pair of pipes, which needs no
// port, no driver and no package.

import { type ChildProcess, spawn } from 'node:child_process'
import type { Readable, Writable } from 'node:stream'

import type { ExecutionContext } from 'ava'

import { have, scratch } from './helpers.ts'

/** The first of these that is installed. */
const PROGRAMS = ['chromium-headless-shell', 'chromium', 'google-chrome', 'chromium-browser']

/** The name of the browser, if there is one. */
export const browserProgram = (): string | undefined => PROGRAMS.find((name) => have(name))

type Parameters = Record<string, unknown>
interface Reply {
  readonly id?: number
  readonly result?: Parameters
  readonly error?: { readonly message: string }
}

/** A page that is open in a browser. */
export class Page {
  readonly #child: ChildProcess
  readonly #to: Writable
  readonly #waiting = new Map<number, { resolve: (result: Parameters) => void; reject: (error: Error) => void }>()
  #lastId = 0
  #session: string | undefined

  private constructor(program: string, profile: string) {
    // As root, and in containers, Chromium's own sandbox can't be had; what it loads here is ours.
    const args = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--remote-debugging-pipe']
    args.push(`--user-data-dir=${profile}`, '--window-size=1200,1000', 'about:blank')
    const env = { ...process.env, HOME: profile }
    // In a group of its own, for it has processes below it that go with it.
    this.#child = spawn(program, args, { stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'], env, detached: true })
    this.#to = this.#child.stdio[3] as Writable
    this.#to.on('error', () => {})
    let text = ''
    const from = this.#child.stdio[4] as Readable
    from.setEncoding('utf8')
    from.on('data', (chunk: string) => {
      const messages = (text + chunk).split('\0')
      text = messages.pop() ?? ''
      for (const message of messages) this.#receive(JSON.parse(message) as Reply)
    })
    this.#child.once('exit', () => {
      for (const { reject } of this.#waiting.values()) reject(new Error(`${program} ended`))
    })
  }

  /** Opens a page; the browser is gone when the test is over. */
  static async open(t: ExecutionContext, program: string, url: string): Promise<Page> {
    const page = new Page(program, scratch(t))
    t.teardown(async () => {
      const over = new Promise((resolve) => {
        page.#child.once('exit', resolve)
      })
      if (page.#child.pid !== undefined) process.kill(-page.#child.pid, 'SIGKILL')
      await over
      for (const stream of page.#child.stdio) stream?.destroy()
    })
    const { targetId } = await page.#ask('Target.createTarget', { url })
    const { sessionId } = await page.#ask('Target.attachToTarget', { targetId, flatten: true })
    page.#session = sessionId as string
    return page
  }

  /** The value of an expression in the page; of a promise, what it resolves with. */
  async evaluate(expression: string): Promise<unknown> {
    const options = { expression, awaitPromise: true, returnByValue: true }
    const { result, exceptionDetails } = await this.#ask('Runtime.evaluate', options)
    if (exceptionDetails !== undefined) throw new Error(JSON.stringify(exceptionDetails))
    return (result as { value?: unknown }).value
  }

  /** Types where the cursor is. */
  async type(text: string): Promise<void> {
    await this.#ask('Input.insertText', { text })
  }

  /** Clicks in the middle of an element. */
  async click(selector: string): Promise<void> {
    const box = (await this.evaluate(
      `(() => { const { x, y, width, height } = document.querySelector(${JSON.stringify(selector)}).getBoundingClientRect()
        return { x: x + width / 2, y: y + height / 2 } })()`,
    )) as { x: number; y: number }
    const event = { ...box, button: 'left', clickCount: 1 }
    await this.#ask('Input.dispatchMouseEvent', { type: 'mousePressed', ...event })
    await this.#ask('Input.dispatchMouseEvent', { type: 'mouseReleased', ...event })
  }

  /** A picture of the page, as PNG. */
  async screenshot(): Promise<Buffer> {
    const { data } = await this.#ask('Page.captureScreenshot', { format: 'png', captureBeyondViewport: true })
    return Buffer.from(data as string, 'base64')
  }

  #ask(method: string, params: Parameters): Promise<Parameters> {
    this.#lastId += 1
    const id = this.#lastId
    const session = this.#session === undefined ? {} : { sessionId: this.#session }
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject })
      this.#to.write(`${JSON.stringify({ id, method, params, ...session })}\0`)
    })
  }

  #receive({ id, result, error }: Reply): void {
    const waiting = id === undefined ? undefined : this.#waiting.get(id)
    if (id === undefined || waiting === undefined) return
    this.#waiting.delete(id)
    if (error === undefined) waiting.resolve(result ?? {})
    else waiting.reject(new Error(error.message))
  }
}
