'use strict';
// What was recorded, and arrays of it: minflux/explain/data.py packs them.

const data = JSON.parse(document.getElementById('data').textContent);
const KINDS = {uint8: Uint8Array, float32: Float32Array};

/** Return the numbers of a packed array, row after row. */
function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.bytes), (sign) => sign.charCodeAt(0));
  return new KINDS[packed.kind](bytes.buffer);
}

/** Return the place in a flat array of an index, given the array's shape. */
function flat(shape, index) {
  return index.reduce((place, i, axis) => place * shape[axis] + i, 0);
}

/** Return "double 1" for "double_blocks.1". */
function shortName(block) {
  return block.replace('_blocks.', ' ');
}

/** Write a share of 1 in percent. */
function percent(share) {
  return `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)}%`;
}

/** Return the mean of the arrays of numbers. */
function meanOf(arrays) {
  return arrays[0].map((_, i) => arrays.reduce((sum, array) => sum + array[i], 0) / arrays.length);
}

/** Make an element of HTML; attributes that are functions listen to events. */
function el(tag, attributes = {}, ...children) {
  return dressed(document.createElement(tag), attributes, children);
}

/** Make an element of SVG. */
function svg(tag, attributes = {}, ...children) {
  return dressed(document.createElementNS('http://www.w3.org/2000/svg', tag), attributes, children);
}

function dressed(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === 'function') element.addEventListener(name, value);
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Return the element with an id. */
function byId(id) {
  return document.getElementById(id);
}
