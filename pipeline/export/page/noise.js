// The noise that torch.randn gives for a CPU generator, so that a seed means here what it means in Python.

// The Mersenne Twister of a 32-bit seed (Matsumoto & Nishimura 1998).
export class Twister {
  constructor(seed) {
    this.state = new Uint32Array(624);
    this.state[0] = seed;
    for (let i = 1; i < 624; i++) {
      const last = this.state[i - 1] ^ (this.state[i - 1] >>> 30);
      this.state[i] = Math.imul(1812433253, last) + i;
    }
    this.index = 624;
  }

  next() {
    if (this.index === 624) this.twist();
    let y = this.state[this.index++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  twist() {
    const s = this.state;
    for (let i = 0; i < 624; i++) {
      const y = (s[i] & 0x80000000) | (s[(i + 1) % 624] & 0x7fffffff);
      s[i] = s[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.index = 0;
  }
}

// Box-Muller over 16 uniforms of 24 bits, in place: cosines of the first eight, sines of the last.
function pairs(values, start) {
  for (let i = start; i < start + 8; i++) {
    const radius = Math.sqrt(-2 * Math.log(1 - values[i])), angle = 2 * Math.PI * values[i + 8];
    values[i] = radius * Math.cos(angle);
    values[i + 8] = radius * Math.sin(angle);
  }
}

function draw(twister, values, start, count) {
  for (let i = start; i < start + count; i++) values[i] = (twister.next() & 0xffffff) / 0x1000000;
}

// Put standard normal noise into values[start .. start + count), 16 numbers or more.
export function normal(twister, values, start, count) {
  draw(twister, values, start, count);
  for (let i = 0; i + 16 <= count; i += 16) pairs(values, start + i);
  if (count % 16) { // the last 16 are drawn again
    draw(twister, values, start + count - 16, 16);
    pairs(values, start + count - 16);
  }
}

// Noise of `num` images of a seed for each of `inputs` inputs: image i has the generator of seed * 2^20 + i.
export function noises(seed, num, size, inputs) {
  const arrays = Array.from({ length: inputs }, () => new Float32Array(num * size));
  for (let i = 0; i < num; i++) {
    const twister = new Twister((seed * 2 ** 20 + i) >>> 0);
    for (const array of arrays) normal(twister, array, i * size, size);
  }
  return arrays;
}
