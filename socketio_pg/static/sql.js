// Formats JSON on one line, and the SQL statements that publish it. Does not depend on the page or on Socket.IO.

// Words that PostgreSQL refuses as an unquoted channel name: pg_get_keywords() with catcode 'R' or 'T'.
const KEYWORDS = new Set(`
  all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate
  collation column concurrently constraint create cross current_catalog current_date current_role
  current_schema current_time current_timestamp current_user default deferrable desc distinct do else end
  except false fetch for foreign freeze from full grant group having ilike in initially inner intersect into
  is isnull join lateral leading left like limit localtime localtimestamp natural not notnull null offset on
  only or order outer overlaps placing primary references returning right select session_user similar some
  symmetric system_user table tablesample then to trailing true union unique user using variadic verbose when
  where window with
`.trim().split(/\s+/));

/** A JSON value as text on one line with a space after each colon and comma: {"id": 1, "tags": ["a", "b"]} */
export function oneLine(value) {
  // JSON escapes line breaks in strings as \n, so each actual line break comes from the indentation.
  return JSON.stringify(value ?? null, null, 1)
    .replace(/([[{])\n */g, "$1")
    .replace(/\n *([\]}])/g, "$1")
    .replace(/\n */g, " ");
}

/** The statement to paste into psql: NOTIFY foo, '{"hello": "world"}'; */
export function notifyStatement(channel, payload) {
  return `NOTIFY ${quoteIdentifier(channel)}, ${quoteLiteral(payload)};`;
}

/** The statement that publishes through the log: SELECT socketio_pg.publish('foo', '{"hello": "world"}'); */
export function publishStatement(channel, payload) {
  return `SELECT socketio_pg.publish(${quoteLiteral(channel)}, ${quoteLiteral(payload)});`;
}

function quoteIdentifier(name) {
  // PostgreSQL folds an unquoted name to lower case, so every other name needs quotes.
  const plain = /^[a-z_][a-z0-9_]*$/.test(name) && !KEYWORDS.has(name);
  return plain ? name : `"${name.replaceAll('"', '""')}"`;
}

function quoteLiteral(text) {
  return `'${text.replaceAll("'", "''")}'`;
}
