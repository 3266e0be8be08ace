// Lines over time or distance, as SVG with words. Lines differ in their dashes too, not by colour alone.

const DASHES = ['', '7 3', '2 3'];
const CHART = {width: 460, height: 210, left: 40, right: 12, top: 10, bottom: 38};

/** Return about four round numbers from low to high. */
function ticks(low, high) {
  const rough = (high - low) / 4 || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((n) => n * power >= rough);
  const found = [];
  for (let x = Math.ceil(low / step - 1e-9) * step; x <= high + 1e-9 * step; x += step) found.push(Number(x.toPrecision(6)));
  return found;
}

/** Draw lines [{name, colour, values}] over xs; `now` is where a line stands, `pick` is told of the nearest x clicked. */
function drawLines(host, {lines, xs, from, to, low, high, label, now, pick, name}) {
  const {width, height, left, right, top, bottom} = CHART;
  const inX = (x) => left + ((x - from) / (to - from || 1)) * (width - left - right);
  const inY = (y) => height - bottom - ((y - low) / (high - low || 1)) * (height - top - bottom);
  const chart = svg('svg', {class: 'chart', viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': name});
  for (const y of ticks(low, high)) {
    chart.append(svg('line', {class: 'axis', x1: left, x2: width - right, y1: inY(y), y2: inY(y)}));
    chart.append(svg('text', {x: left - 6, y: inY(y) + 4, 'text-anchor': 'end'}, String(y)));
  }
  for (const x of ticks(Math.min(from, to), Math.max(from, to))) {
    chart.append(svg('text', {x: inX(x), y: height - bottom + 16, 'text-anchor': 'middle'}, String(x)));
  }
  chart.append(svg('text', {x: (left + width - right) / 2, y: height - 3, 'text-anchor': 'middle'}, label));
  lines.forEach(({values, colour}, i) => {
    const points = [...values].map((y, j) => `${inX(xs[j]).toFixed(1)},${inY(y).toFixed(1)}`);
    const shape = points.length > 1 ? `M${points.join('L')}` : `M${points[0]}h.1`;
    const style = `stroke: var(--${colour}); stroke-linecap: round`;
    chart.append(svg('path', {d: shape, style, 'stroke-dasharray': DASHES[i % DASHES.length]}));
  });
  if (now !== undefined) chart.append(svg('line', {class: 'now', x1: inX(now), x2: inX(now), y1: top, y2: height - bottom}));
  if (pick) {
    chart.style.cursor = 'pointer';
    chart.addEventListener('click', (event) => {
      const box = chart.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * width;
      pick(nearest(xs.map(inX), x));
    });
  }
  host.replaceChildren(chart, ...(lines.length > 1 ? [keyOf(lines)] : []));
}

function keyOf(lines) {
  const key = el('div', {class: 'key', 'aria-hidden': 'true'});
  lines.forEach(({name, colour}, i) => {
    const style = `stroke: var(--${colour}); stroke-width: 2`;
    const line = svg('line', {x1: 0, x2: 26, y1: 4, y2: 4, style, 'stroke-dasharray': DASHES[i % DASHES.length]});
    key.append(el('span', {}, svg('svg', {}, line), name));
  });
  return key;
}
