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
  // Not with the indentation of JSON.stringify(): of deeply nested values it is thousands of times as long as they are.
  return JSON.stringify(value ?? null).replace(/"(?:[^"\\]|\\.)*"|[:,]/g, (token) => (token.length === 1 ? `${token} ` : token));
}

/** The statement to paste into psql: NOTIFY foo, '{"hello": "world"}'; */
export function notifyStatement(channel, payload) {
  return `NOTIFY ${quoteIdentifier(channel)}, ${quoteLiteral(payload)};`;
}

/** The statement that publishes through the log: SELECT socketio_pg.publish('foo', '{"hello": "world"}'); */
export function publishStatement(channel, payload) {
  return `SELECT socketio_pg.publish(${quoteLiteral(channel)}, ${quoteLiteral(payload)});`;
}

/** The shell command that publishes JSON text through the HTTP API at `url`. */
export function curlCommand(url, channel, payload, durable) {
  const body = `{"channel": ${visible(JSON.stringify(channel))}, "payload": ${payload}, "durable": ${durable}}`;
  return `curl ${quoteArgument(url)} -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' -d ${quoteArgument(body)}`;
}

/**
 * JSON text with escapes for characters that a terminal obeys, or that make a text look like another one. They can only
 * be in its strings.
 */
export function visible(json) {
  return json.replace(/[\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g, (character) => (
    `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`));
}

function quoteArgument(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function quoteIdentifier(name) {
  // PostgreSQL folds an unquoted name to lower case, so every other name needs quotes.
  const plain = /^[a-z_][a-z0-9_]*$/.test(name) && !KEYWORDS.has(name);
  return plain ? name : `"${name.replaceAll('"', '""')}"`;
}

function quoteLiteral(text) {
  return `'${text.replaceAll("'", "''")}'`;
}
