// What all harnesses make of a request's line and fields.
// Bytes that no URL has as they are: frameworks decode percents, and Node would give them Latin-1.
export const percents = (target) =>
  target.replace(/[\x80-\xff]/g, (c) => '%' + c.charCodeAt().toString(16).toUpperCase())

// The client, as the front end has found it out, in the form of Bun's requestIP. Its port is not known.
export const clientOf = (address) => address ? { address, family: address.includes(':') ? 'IPv6' : 'IPv4', port: 0 } : null
