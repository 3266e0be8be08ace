// A grid that can be pointed at, clicked, touched, and walked over with the arrow keys.

const ARROWS = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};

/** Make a host a grid: `pick` is told of rows and columns that are chosen, `over` of those pointed at, or null. */
function makeGrid(host, name, size, {pick, over = () => {}}) {
  const mark = el('div', {class: 'chosen', 'aria-hidden': 'true'});
  const canvas = el('canvas');
  let at = [0, 0];
  host.append(canvas, mark);
  host.tabIndex = 0;
  host.setAttribute('role', 'application');
  host.setAttribute('aria-label', `${name}; arrow keys move in it`);

  function under(event) {
    const box = host.getBoundingClientRect();
    const [rows, columns] = size();
    const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
    const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
    return [Math.min(Math.max(row, 0), rows - 1), Math.min(Math.max(column, 0), columns - 1)];
  }
  host.addEventListener('pointermove', (event) => event.pointerType === 'mouse' && over(under(event)));
  host.addEventListener('pointerleave', () => over(null));
  host.addEventListener('click', (event) => pick(...under(event)));
  host.addEventListener('keydown', (event) => {
    const move = ARROWS[event.key];
    if (!move) return;
    event.preventDefault();
    const [rows, columns] = size();
    pick(Math.min(Math.max(at[0] + move[0], 0), rows - 1), Math.min(Math.max(at[1] + move[1], 0), columns - 1));
  });

  return {
    canvas,
    /** Frame a cell, or with null none; the arrow keys go on from there. */
    mark(cell, rowsHigh = 1) {
      mark.hidden = cell === null;
      if (cell === null) return;
      const [rows, columns] = size();
      at = cell;
      mark.style.top = `${(100 * cell[0]) / rows}%`;
      mark.style.left = `${(100 * cell[1]) / columns}%`;
      mark.style.height = `${(100 * rowsHigh) / rows}%`;
      mark.style.width = `${100 / columns}%`;
    },
  };
}
