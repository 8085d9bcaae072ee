// A command as one line: for people, never for a shell.

/** The command as one line, for reading. */
export const commandLine = (file: string, args: readonly string[]): string => {
  let line = quoted(file)
  for (const arg of args) line += ` ${quoted(arg)}`
  return line
}

/** As in a shell, though never meant for one; control characters escaped, for this goes into logs. */
const quoted = (word: string): string => {
  if (/^[\w%+,./:=@-]+$/.test(word)) return word
  return `'${word.replaceAll("'", String.raw`'\''`).replaceAll(CONTROL, escaped)}'`
}

// oxlint-disable-next-line no-control-regex
const CONTROL = /[\u0000-\u001F\u007F-\u009F]/g

const escaped = (character: string): string => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`
