// The positional population count: how many of many words have each bit. Only for level.cpp.
#pragma once

#include "cpu/simd.h"

namespace {

typedef uint16_t WordVec __attribute__((vector_size(kLanes * 4)));
constexpr int64_t kWords = 2 * kLanes;  // of a vector
constexpr int kBits = 16;

// Adds weight times the words' bits to counts.
inline void count_bits(const uint16_t* words, int64_t size, int32_t weight, int32_t (&counts)[kBits]) {
  constexpr int kVecs = kBits / kLanes;
  IntVec found[kVecs] = {};
  for (int64_t i = 0; i < size; ++i) {
    for (int v = 0; v < kVecs; ++v) found[v] -= lanes_of(static_cast<unsigned>(words[i]) >> (v * kLanes));
  }
  for (int b = 0; b < kBits; ++b) counts[b] += weight * found[b / kLanes][b % kLanes];
}

// A full adder of bits: sum becomes sum + a + b, and what it carries is returned.
inline WordVec add_bits(WordVec& sum, WordVec a, WordVec b) {
  const WordVec either = sum ^ a, carry = (sum & a) | (either & b);
  sum = either ^ b;
  return carry;
}

// The same for many words: a tree of full adders leaves one vector in eight to be looked at bit by bit (Harley and
// Seal's method; W. Mula, N. Kurz and D. Lemire, Faster Population Counts Using AVX2 Instructions, 2018).
inline void positional_popcount(const uint16_t* words, int64_t size, int32_t (&counts)[kBits]) {
  constexpr int64_t kTree = 8 * kWords, kMost = 60000 * kTree, kFew = 512;  // a lane counts to 65535
  for (int b = 0; b < kBits; ++b) counts[b] = 0;
  while (size >= kFew) {
    const int64_t groups = (size < kMost ? size : kMost) / kTree;
    WordVec ones = {}, twos = {}, fours = {}, eights[kBits] = {};
    for (int64_t g = 0; g < groups; ++g, words += kTree) {
      WordVec v[8];
      for (int i = 0; i < 8; ++i) v[i] = load_unaligned<WordVec>(words + i * kWords);
      WordVec carry[4];
      for (int i = 0; i < 4; ++i) carry[i] = add_bits(ones, v[2 * i], v[2 * i + 1]);
      const WordVec lower = add_bits(twos, carry[0], carry[1]), upper = add_bits(twos, carry[2], carry[3]);
      const WordVec eight = add_bits(fours, lower, upper);
#pragma GCC unroll 16
      for (int b = 0; b < kBits; ++b) eights[b] += (eight >> b) & 1;
    }
    for (int b = 0; b < kBits; ++b) {
      int32_t sum = 0;
      for (int64_t lane = 0; lane < kWords; ++lane) sum += eights[b][lane];
      counts[b] += 8 * sum;
    }
    uint16_t rest[kWords];
    const WordVec sums[] = {ones, twos, fours};
    for (int s = 0; s < 3; ++s) {
      __builtin_memcpy(rest, &sums[s], sizeof(rest));
      count_bits(rest, kWords, 1 << s, counts);
    }
    size -= groups * kTree;
  }
  count_bits(words, size, 1, counts);
}

// counts[c] = how many of the words of a panel have the bit of channel c, for as many channels as there are.
inline void count_channels(const uint16_t* words, int64_t size, int64_t channels, float* counts) {
  int32_t found[kBits];
  positional_popcount(words, size, found);
  for (int c = 0; c < kBits && c < channels; ++c) counts[c] = static_cast<float>(found[c]);
}

}  // namespace
