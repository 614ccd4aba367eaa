// Parts in rows with edges between them; pointing at a part shows its edges, and of a head where it
// looks, a slider how many are drawn at all.
//
// data: title, notes, names, boxes (what stands in them), rows, columns (-1: the middle), row_labels,
// begin, end, value, note (of edges, the largest first), value_name, signs (what a number below and
// one above 0 means), dashed ("less" or "more", the kind of edges that is), pages (of parts, "" for none), attention (null, or that of heads: what
// attention.js reads of one layer, and parts (which they are); its title says on what text).

async function mount(element, data) {
  const looks = data.attention && (await looking(data));
  const { body, say } = frame(element, data);
  network(body, data, looks, say);
}
