/** The elements of the page by their ids, and what is written into them. */

/** @typedef {import('../engine/model.js').Model} Model */

/**
 * Return an element of the page.
 * @template {HTMLElement} T
 * @param {string} id
 * @param {new () => T} kind
 */
export function element(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`The page has no ${kind.name} ${id}.`);
  return found;
}

/** @param {string} id */
export const button = (id) => element(id, HTMLButtonElement);
/** @param {string} id */
export const input = (id) => element(id, HTMLInputElement);
/** @param {string} id */
export const select = (id) => element(id, HTMLSelectElement);
/** @param {string} id */
export const box = (id) => element(id, HTMLElement);

/**
 * Say something that the visitor should know; an empty text takes it away.
 * @param {string} text
 * @param {boolean} [isError]
 */
export function say(text, isError = false) {
  const message = box('message');
  message.textContent = text;
  message.hidden = !text;
  message.classList.toggle('error', isError);
}

/**
 * Follow a slider, and write its value beside it.
 * @param {string} id
 * @param {(value: number) => string} text
 * @param {(value: number) => void} changed
 */
export function slider(id, text, changed) {
  const range = input(id);
  const update = () => {
    const value = Number(range.value);
    box(`${id}-value`).textContent = text(value);
    range.setAttribute('aria-valuetext', text(value));
    changed(value);
  };
  range.addEventListener('input', update);
  update();
}

/**
 * Fill a list of choices.
 * @param {HTMLSelectElement} list
 * @param {{value: string, text: string}[]} choices
 */
export function choices(list, choices) {
  const chosen = list.value;
  list.replaceChildren(...choices.map(({ value, text }) => new Option(text, value)));
  if (choices.some(({ value }) => value === chosen)) list.value = chosen;
}

/** What the controls are called, and the units of their values. */
const CONTROLS = new Map([
  ['composer', { title: 'In the manner of', unit: '' }],
  ['density', { title: 'Notes a second', unit: '' }],
  ['loudness', { title: 'Loudness', unit: '' }],
  ['note_length', { title: 'Length of notes', unit: ' s' }],
]);

/**
 * Build a slider or a list for each control of the model; each begins as free.
 * @param {Model} model
 * @param {(wanted: Record<string, number | string>) => void} changed
 */
export function buildControls(model, changed) {
  if (!model.controls.length) return;
  /** @type {Record<string, number | string>} */
  const wanted = {};
  const rows = model.controls.map((attribute) => {
    const { title, unit } = CONTROLS.get(attribute.option) ?? { title: attribute.name, unit: '' };
    const row = document.createElement('div');
    row.className = 'row';
    const id = `control-${attribute.option}`;
    const label = Object.assign(document.createElement('label'), { htmlFor: id, textContent: title });
    const output = document.createElement('output');
    /** @type {HTMLSelectElement | HTMLInputElement} */
    let field;
    if (attribute.isNumber) {
      // The lowest place of the slider leaves the model free.
      field = Object.assign(document.createElement('input'), { type: 'range', min: '0', step: '1', value: '0' });
      field.max = String(attribute.values.length);
    } else {
      field = document.createElement('select');
      choices(field, [{ value: '0', text: 'anybody' }, ...attribute.values.map((value, index) => {
        return { value: String(index + 1), text: String(value) };
      })]);
    }
    field.id = id;
    const show = (/** @type {string} */ text) => {
      output.textContent = text;
      if (attribute.isNumber) field.setAttribute('aria-valuetext', text);
    };
    show('free');
    field.addEventListener('input', () => {
      const index = Number(field.value) - 1;
      if (index < 0) delete wanted[attribute.option];
      else wanted[attribute.option] = attribute.values[index];
      show(index < 0 ? 'free' : `${attribute.values[index]}${unit}`);
      changed({ ...wanted });
    });
    row.append(label, field);
    if (attribute.isNumber) row.append(output);
    return row;
  });
  box('controls').append(...rows);
  box('controls').hidden = false;
}
