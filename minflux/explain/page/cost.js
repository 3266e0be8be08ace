// What each part cost, in operations and in seconds.

const UNITS = [[1e15, 'PFLOP'], [1e12, 'TFLOP'], [1e9, 'GFLOP'], [1e6, 'MFLOP'], [1, 'FLOP']];
const FLOWS = ['txt', 'img', 'both', 'vec', 'pe'];

/** Write a count of operations with its unit. */
function operations(count) {
  const [unit, name] = UNITS.find(([size]) => count >= size) ?? UNITS.at(-1);
  return `${(count / unit).toPrecision(3)} ${name}`;
}

/** Write seconds. */
function seconds(time) {
  return time >= 100 ? `${time.toFixed(0)} s` : time >= 0.1 ? `${time.toFixed(2)} s` : `${(1000 * time).toFixed(1)} ms`;
}

function shareBar(share, flow) {
  return el('span', {class: 'share', style: `width: ${100 * share}%; background: var(--${flow})`});
}

const totals = {flops: sum(data.cost.map((part) => part.flops)), seconds: sum(data.cost.map((part) => part.seconds))};

function costRow({name, flops, seconds: time}, flow) {
  const bars = [flops / totals.flops, time / totals.seconds];
  return el('tr', {}, el('th', {scope: 'row'}, name),
    el('td', {}, `${operations(flops)}, ${percent(bars[0])}`, ...(flow ? [shareBar(bars[0], flow)] : [])),
    el('td', {}, `${seconds(time)}, ${percent(bars[1])}`, ...(flow ? [shareBar(bars[1], flow)] : [])),
    el('td', {}, (flops / time / 1e9).toPrecision(3)));
}

data.cost.forEach((part, i) => byId('parts').append(costRow(part, FLOWS[i])));
byId('parts').after(el('tfoot', {}, costRow({name: 'together', ...totals})));
