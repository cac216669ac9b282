// A press on the head of a column sorts the table; `element` is gradio's HTML component.
element.addEventListener('click', e => {
  const button = e.target.closest('th button');
  if (!button) return;
  const th = button.closest('th'), body = element.querySelector('table.rows tbody'), col = +button.dataset.col;
  const up = th.getAttribute('aria-sort') !== 'ascending';
  element.querySelectorAll('th[aria-sort]').forEach(h => h.setAttribute('aria-sort', h === th ? (up ? 'ascending' : 'descending') : 'none'));
  const value = tr => { const td = tr.cells[col]; return td.dataset.v ?? td.textContent.trim(); };
  const rank = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b, undefined, {numeric: true}) : a - b;
  const order = (a, b) => a === b ? 0 : a === '' ? 1 : b === '' ? -1 : (up ? 1 : -1) * rank(a, b);
  [...body.rows].sort((r, s) => order(value(r), value(s))).forEach(r => body.append(r));
});
