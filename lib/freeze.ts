// Makes plain data immutable, all the way down.

/** Freezes a value and everything in it; what is frozen already is taken to be so throughout. */
export const deepFreeze = <T extends object>(value: T): T => {
  for (const item of Object.values(value)) {
    if (typeof item === 'object' && item !== null && !Object.isFrozen(item)) deepFreeze(item as object)
  }
  return Object.freeze(value)
}
