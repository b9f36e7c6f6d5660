/**
 * What `python -m hub.web` writes to `model.json`: the vocabulary and the constants of the Python packages, by their
 * names there.
 */

/**
 * @typedef {object} ProgramShape
 * @property {string} file
 * @property {number} bytes
 * @property {number} lostNats
 * @property {number} window
 * @property {number} chunk
 * @property {number} layers
 * @property {number} heads
 * @property {number} headDim
 * @property {number} vocabulary
 */

/**
 * @typedef {object} PerformanceConstants
 * @property {number} STEPS_PER_SECOND
 * @property {number} MAX_SHIFT_STEPS
 * @property {number} NUM_PITCHES
 * @property {number} VELOCITIES_PER_BIN
 * @property {number} DEFAULT_VELOCITY
 * @property {number} NOTE_OFF
 * @property {number} NOTE_ON
 * @property {number} TIME_SHIFT
 * @property {number} VELOCITY
 * @property {number} MAX_STEPS
 * @property {number} BEFORE
 * @property {number} FOREVER
 * @property {number} UNKNOWN
 * @property {number} QUARTERS_PER_MINUTE
 * @property {number} TICKS_PER_QUARTER
 * @property {number} MILLISECONDS_PER_STEP
 * @property {number[]} VELOCITY_OF_BIN
 */

/**
 * @typedef {object} Piano Limits of what a piano plays; null for none.
 * @property {[number, number] | null} pitch_range
 * @property {number | null} max_note_seconds
 * @property {number | null} max_rest_seconds
 */

/**
 * @typedef {object} GrammarConstants
 * @property {number} BEGIN
 * @property {number} END
 * @property {number} NOTHING
 * @property {number} CONTROL
 * @property {number} PREFIX
 * @property {number} CLOSING_STEPS
 * @property {number} CLOSING_REST_STEPS
 * @property {number} SEGMENT_STEPS
 * @property {number} RELEASED_KEYS
 * @property {Piano} PIANO
 */

/**
 * @typedef {object} Attribute What control tokens can state of a segment.
 * @property {string} name
 * @property {string} option
 * @property {(number | string)[]} values
 * @property {boolean} is_ratio
 * @property {boolean} isNumber
 * @property {[number, number]} span Its first id, and the one after its last.
 */

/**
 * @typedef {object} FeedbackConstants
 * @property {string[]} ATTRIBUTES The names of what is enforced: density, loudness and note length.
 * @property {number} DENSITY_RATE
 * @property {number} LOUDNESS_RATE
 * @property {number} NOTE_LENGTH_RATE
 * @property {number} VELOCITY_UNIT
 * @property {number} LIMIT
 * @property {number} LEAST_PLANNED
 */

/**
 * @typedef {object} InfillConstants
 * @property {number} suffix
 * @property {number} prefix
 * @property {number} end
 * @property {number} SPARE_TIMES
 * @property {number} TOKENS_PER_SECOND
 * @property {number} MIN_CONTEXT_TOKENS
 * @property {number} DEFAULT_BIN
 */

/**
 * @typedef {object} MidiConstants
 * @property {number} MAX_TRACKS
 * @property {number} MAX_BYTES
 * @property {number} NOTE_OFF
 * @property {number} NOTE_ON
 * @property {number} CONTROLLER
 * @property {number} PROGRAM_CHANGE
 * @property {number} PITCH_BEND
 * @property {number} SYSEX
 * @property {number} SYSEX_CONTINUED
 * @property {number} META
 * @property {number} META_END_OF_TRACK
 * @property {number} META_TEMPO
 * @property {number} DRUM_CHANNEL
 * @property {number} DEFAULT_TEMPO
 * @property {number} SUSTAIN_PEDAL
 * @property {number} ALL_SOUND_OFF
 * @property {number} RESET_ALL_CONTROLLERS
 * @property {number} ALL_NOTES_OFF
 * @property {number} PEDAL_DOWN
 * @property {number[]} PEDALS
 * @property {number} FADING_SECONDS
 * @property {number[]} UNDEFINED
 * @property {number[]} DATA_BYTES
 */

/**
 * @typedef {object} Model
 * @property {string} name
 * @property {{license: string | null, datasets: string[]}} card
 * @property {ProgramShape} program
 * @property {{temperature: number, topP: number, minP: number}} sampling
 * @property {string[]} tokens
 * @property {number} pad
 * @property {number} bos
 * @property {number} eos
 * @property {[number, number][]} events The kind and the value of each id.
 * @property {Record<string, [number, number]>} spans For each kind of event its first id, and the one after its last.
 * @property {PerformanceConstants} performance
 * @property {GrammarConstants} grammar
 * @property {{MAX_LAG: number, MAX_REPEATED_NOTES: number, PENALTY: number}} repetition
 * @property {FeedbackConstants} feedback
 * @property {{RATE: number}} forgotten
 * @property {{TOKENS_PER_SECOND: number, SPARE_TOKENS: number}} generation
 * @property {MidiConstants} midi
 * @property {Attribute[]} controls
 * @property {{UNSTATED: number, PLANNED: string, OFF: string, DEFAULT_CONTROLS: Record<string, string>}} control
 * @property {InfillConstants | null} infill
 */

export {};
