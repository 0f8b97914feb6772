// Window arithmetic against the definition, for every small problem and in both directions.
#include "definition/window.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "definition/span.h"

namespace natten {
namespace {

using Keys = std::vector<int>;

// The definition, written out on absolute positions and without window.h.
Keys defined_keys(int length, int kernel_size, int gna_stride, int dilation, bool is_causal, int query) {
  const int group = query % dilation;
  std::vector<int> members;
  for (int token = group; token < length; token += dilation) members.push_back(token);
  const int n = static_cast<int>(members.size());
  const int place = query / dilation;
  const int first_of_block = place - place % gna_stride;
  int begin, end;
  if (is_causal) {
    const int leader = std::min(first_of_block + gna_stride - 1, n - 1);
    begin = std::max(leader - kernel_size + 1, 0);
    end = place + 1;
  } else {
    const int leader = std::min(first_of_block + gna_stride / 2, n - 1);
    begin = leader - kernel_size / 2;
    if (begin < 0) begin = 0;
    if (begin > n - kernel_size) begin = n - kernel_size;
    end = begin + kernel_size;
  }
  return {members.begin() + begin, members.begin() + end};
}

template <class Int>
Keys computed_keys(BasicAxis<Int> axis, int query) {
  const Int group = query % axis.dilation;
  const Range<Int> range =
      window<Int>(axis, query / axis.dilation, group_length<Int>(axis.length, axis.dilation, group));
  Keys keys;
  for (Int place = range.start; place < range.end; ++place)
    keys.push_back(static_cast<int>(place * axis.dilation + group));
  return keys;
}

// Causal axes with a kernel that does not fit, up to twice as long as the axis.
template <class Visit>
void for_every_long_causal_axis(int max_length, Visit visit) {
  for (int length = 1; length < max_length; ++length) {
    for (int kernel_size = 1; kernel_size <= 2 * length + 1; ++kernel_size) {
      for (int dilation = 1; dilation <= length + 1; ++dilation) {
        if (dilation * kernel_size <= length) continue;
        for (int gna_stride = 1; gna_stride <= kernel_size; ++gna_stride) {
          visit(BasicAxis<long>{length, kernel_size, 1, dilation, gna_stride, true});
        }
      }
    }
  }
}

template <class Visit>
void for_every_circular_axis(int max_length, Visit visit) {
  for (int length = 1; length < max_length; ++length) {
    for (int dilation = 1; dilation <= length; ++dilation) {
      if (length % dilation != 0) continue;
      for (int kernel_size = 1; kernel_size <= length / dilation; ++kernel_size) {
        for (int gna_stride = 1; gna_stride <= kernel_size; ++gna_stride) {
          if (length / dilation % gna_stride != 0) continue;
          visit(BasicAxis<long>{length, kernel_size, 1, dilation, gna_stride, false, true});
        }
      }
    }
  }
}

template <class Visit>
void for_every_axis(int max_length, Visit visit) {
  for (int length = 1; length < max_length; ++length) {
    for (int kernel_size = 1; kernel_size <= length; ++kernel_size) {
      for (int dilation = 1; dilation * kernel_size <= length; ++dilation) {
        for (int gna_stride = 1; gna_stride <= kernel_size; ++gna_stride) {
          for (bool is_causal : {false, true}) {
            visit(BasicAxis<long>{length, kernel_size, 1, dilation, gna_stride, is_causal});
          }
        }
      }
    }
  }
}

// Unwrapped places of a circular window: the leader stands at the middle of its block and has K / 2 keys on its left.
Keys circular_places(const BasicAxis<long>& a, int query) {
  const int place = query / static_cast<int>(a.dilation);
  const int block = place - place % static_cast<int>(a.gna_stride);
  Keys places;
  for (int t = 0; t < a.kernel_size; ++t) {
    places.push_back(block + static_cast<int>(a.gna_stride) / 2 - static_cast<int>(a.kernel_size) / 2 + t);
  }
  return places;
}

TEST(Window, LongCausalKernelsHoldTheKeysThatExist) {
  for_every_long_causal_axis(15, [](BasicAxis<long> a) {
    const int length = static_cast<int>(a.length);
    std::vector<std::set<long>> attending(length);
    for (int query = 0; query < length; ++query) {
      const Keys expected = defined_keys(length, static_cast<int>(a.kernel_size), static_cast<int>(a.gna_stride),
                                         static_cast<int>(a.dilation), true, query);
      ASSERT_EQ(computed_keys(a, query), expected);
      for (int key : expected) attending[key].insert(query);
    }
    for (long key = 0; key < length; ++key) {
      const long group = key % a.dilation;
      const Range<long> range = attending_queries(a, key / a.dilation, group_length(a.length, a.dilation, group));
      std::set<long> found;
      for (long place = range.start; place < range.end; ++place) found.insert(place * a.dilation + group);
      ASSERT_EQ(found, attending[key]) << a.length << ' ' << a.kernel_size << ' ' << a.gna_stride << ' ' << a.dilation;
    }
  });
}

TEST(Window, CircularWindowsAndTheirInverse) {
  for_every_circular_axis(31, [](BasicAxis<long> a) {
    const long n = a.length / a.dilation;
    for (long group = 0; group < a.dilation; ++group) {
      std::vector<std::set<long>> attending(n);  // by place of the key
      for (long place = 0; place < n; ++place) {
        const Range<long> range = window(a, place, group_length(a.length, a.dilation, group));
        Keys found;
        for (long key = range.start; key < range.end; ++key) found.push_back(static_cast<int>(key));
        ASSERT_EQ(found, circular_places(a, static_cast<int>(place * a.dilation + group)));
        std::set<long> keys;
        for (long key : found) {
          ASSERT_GE(2 * key, -n);
          ASSERT_LT(2 * key, 3 * n);
          keys.insert((key + n) % n);
          attending[(key + n) % n].insert(place);
          ASSERT_EQ(key_in_slot(a, place, range.start, key - range.start), key);
          ASSERT_EQ(slot_of_key(a, place, range.start, key), key - range.start);
          ASSERT_GE(rpb_index(a, place, key), 0);
          ASSERT_LT(rpb_index(a, place, key), 2 * a.kernel_size - 1);
        }
        ASSERT_EQ(keys.size(), found.size());  // no key twice
        ASSERT_EQ(keys.count(place), 1U);
      }
      for (long key = -(n / 2); 2 * key < 3 * n; ++key) {
        const Range<long> range = attending_queries(a, key, n);
        ASSERT_LE(range.end - range.start, n);
        std::set<long> found;
        for (long query = range.start; query < range.end; ++query) {
          const long place = (query % n + n) % n;
          found.insert(place);
          // Unwrapped alike: the window of `place` holds the key as far from it.
          const Range<long> keys = window(a, place, n);
          ASSERT_GE(key - (query - place), keys.start);
          ASSERT_LT(key - (query - place), keys.end);
        }
        ASSERT_EQ(found, attending[(key % n + n) % n]) << a.length << ' ' << a.kernel_size << ' ' << a.gna_stride;
      }
    }
  });
}

// Of the rows that a span's computed queries need, by going through them.
Range<long> reached_keys(const BasicAxis<long>& a, long start, long rows) {
  Range<long> reached{0, 0};
  bool is_first = true;
  for (long query = start; query < start + rows; ++query) {
    if (query % a.stride != 0) continue;
    Keys keys;
    if (a.is_circular) {
      for (int place : circular_places(a, static_cast<int>(query)))
        keys.push_back(static_cast<int>(place * a.dilation + query % a.dilation));
    } else {
      keys = defined_keys(static_cast<int>(a.length), static_cast<int>(a.kernel_size), static_cast<int>(a.gna_stride),
                          static_cast<int>(a.dilation), a.is_causal, static_cast<int>(query));
    }
    for (long key : keys) {
      reached.start = is_first ? key : std::min(reached.start, key);
      reached.end = is_first ? key + 1 : std::max(reached.end, key + 1);
      is_first = false;
    }
  }
  return reached;
}

void expect_needed_keys(BasicAxis<long> a) {
  const long strides = a.gna_stride > 1 ? 1 : a.kernel_size;
  for (a.stride = 1; a.stride <= strides; ++a.stride) {
    for (long start = 0; start < a.length; ++start) {
      for (long rows = 1; start + rows <= a.length; ++rows) {
        const Range<long> expected = reached_keys(a, start, rows);
        const Range<long> needed = needed_keys(a, {start, rows, 0, 0});
        ASSERT_EQ(needed.start, expected.start)
            << a.length << ' ' << a.kernel_size << ' ' << a.stride << ' ' << a.dilation << ' ' << a.gna_stride << ' '
            << a.is_causal << a.is_circular << " queries " << start << " + " << rows;
        ASSERT_EQ(needed.end, expected.end);
        long computed = 0;
        for (long query = start; query < start + rows; ++query) computed += query % a.stride == 0;
        ASSERT_EQ(query_count(a, {start, rows, 0, 0}), computed);
      }
    }
  }
}

TEST(Window, KeysThatASpanNeeds) {
  for_every_axis(13, expect_needed_keys);
  for_every_circular_axis(13, expect_needed_keys);
  for_every_long_causal_axis(8, expect_needed_keys);
}

TEST(Window, PositionsFarBeyond32Bits) {
  const std::int64_t length = (std::int64_t{1} << 60) - 1, start = (std::int64_t{1} << 59) + 5;
  const Axis axis{length, 7, 1, 3, 1, false};
  const Range<std::int64_t> needed = needed_keys(axis, {start, 4, 0, 0});
  EXPECT_EQ(needed.start, start - 9);
  EXPECT_EQ(needed.end, start + 3 + 9 + 1);
  const Axis causal{length, std::int64_t{1} << 60, 1, std::int64_t{1} << 60, 1, true};
  EXPECT_EQ(needed_keys(causal, {start, 1, 0, 0}).start, start);
  const Axis circular{length - 2, 5, 1, 1, 1, false, true};
  EXPECT_EQ(needed_keys(circular, {length - 3, 1, 0, 0}).end, length);
}

TEST(Window, EqualsTheDefinition) {
  for_every_axis(26, [](BasicAxis<long> a) {
    const BasicAxis<int> narrow{static_cast<int>(a.length),   static_cast<int>(a.kernel_size), 1,
                                static_cast<int>(a.dilation), static_cast<int>(a.gna_stride),  a.is_causal};
    for (int query = 0; query < a.length; ++query) {
      const Keys expected =
          defined_keys(narrow.length, narrow.kernel_size, narrow.gna_stride, narrow.dilation, a.is_causal, query);
      ASSERT_EQ(computed_keys(a, query), expected) << a.length << ' ' << a.kernel_size << ' ' << a.gna_stride << ' '
                                                   << a.dilation << ' ' << a.is_causal << " query " << query;
      ASSERT_EQ(computed_keys(narrow, query), expected);
      ASSERT_EQ(std::count(expected.begin(), expected.end(), query), 1);
      if (!a.is_causal) {
        ASSERT_EQ(expected.size(), static_cast<std::size_t>(a.kernel_size));
      }
    }
  });
}

TEST(Window, InverseRangeIsEveryAttendingQuery) {
  for_every_axis(26, [](BasicAxis<long> a) {
    // attends[key][query], by enumeration of the definition
    std::vector<std::set<long>> attending(a.length);
    for (int query = 0; query < a.length; ++query) {
      for (int key : defined_keys(a.length, a.kernel_size, a.gna_stride, a.dilation, a.is_causal, query)) {
        attending[key].insert(query);
      }
    }
    for (long key = 0; key < a.length; ++key) {
      const long group = key % a.dilation;
      const Range<long> range = attending_queries(a, key / a.dilation, group_length(a.length, a.dilation, group));
      std::set<long> found;
      for (long place = range.start; place < range.end; ++place) found.insert(place * a.dilation + group);
      ASSERT_FALSE(found.empty());
      ASSERT_EQ(found, attending[key]) << a.length << ' ' << a.kernel_size << ' ' << a.gna_stride << ' ' << a.dilation
                                       << ' ' << a.is_causal << " key " << key;
    }
  });
}

TEST(Window, InverseRangeWithQueryStride) {
  for_every_axis(16, [](BasicAxis<long> a) {
    if (a.gna_stride > 1) return;
    for (long stride = 1; stride <= a.kernel_size; ++stride) {
      ASSERT_EQ(output_length(a.length, stride), (a.length + stride - 1) / stride);
      for (long key = 0; key < a.length; ++key) {
        std::set<long> expected, found;
        for (long query = 0; query < a.length; query += stride) {
          const Keys keys = defined_keys(a.length, a.kernel_size, 1, a.dilation, a.is_causal, query);
          if (std::count(keys.begin(), keys.end(), key)) expected.insert(query);
        }
        const long group = key % a.dilation;
        const Range<long> range = attending_queries(a, key / a.dilation, group_length(a.length, a.dilation, group));
        for (long place = range.start; place < range.end; ++place) {
          const long query = place * a.dilation + group;
          if (query % stride == 0) found.insert(query);
        }
        ASSERT_EQ(found, expected);
      }
    }
  });
}

TEST(Window, SlotsAndBiasIndices) {
  for_every_axis(20, [](BasicAxis<long> a) {
    for (long query = 0; query < a.length; ++query) {
      const long group = query % a.dilation, place = query / a.dilation;
      const Range<long> range = window(a, place, group_length(a.length, a.dilation, group));
      for (long key = range.start; key < range.end; ++key) {
        const long slot = slot_of_key(a, place, range.start, key);
        ASSERT_GE(slot, 0);
        ASSERT_LT(slot, a.kernel_size);
        ASSERT_EQ(key_in_slot(a, place, range.start, slot), key);
        ASSERT_EQ(rpb_index(a, place, key), key - place + a.kernel_size - 1);
        ASSERT_GE(rpb_index(a, place, key), 0);
        ASSERT_LT(rpb_index(a, place, key), 2 * a.kernel_size - 1);
      }
      if (a.is_causal) {
        ASSERT_EQ(slot_of_key(a, place, range.start, place), a.kernel_size - 1);
      } else {
        ASSERT_EQ(slot_of_key(a, place, range.start, range.start), 0);
      }
    }
  });
}

std::string drawn(int length, int kernel_size, int gna_stride, int dilation, bool is_causal) {
  std::string text;
  for (int query = 0; query < length; ++query) {
    if (query) text += ' ';
    for (int key : computed_keys(BasicAxis<long>{length, kernel_size, 1, dilation, gna_stride, is_causal}, query)) {
      text += static_cast<char>(key < 10 ? '0' + key : 'a' + key - 10);
    }
  }
  return text;
}

TEST(Window, GoldenVectors) {
  EXPECT_EQ(drawn(7, 4, 1, 1, false), "0123 0123 0123 1234 2345 3456 3456");
  EXPECT_EQ(drawn(8, 4, 2, 1, false), "0123 0123 1234 1234 3456 3456 4567 4567");
  EXPECT_EQ(drawn(8, 4, 4, 1, false), "0123 0123 0123 0123 4567 4567 4567 4567");
  EXPECT_EQ(drawn(7, 4, 2, 1, true), "0 01 012 0123 234 2345 3456");
  EXPECT_EQ(drawn(11, 4, 2, 2, false), "0246 1357 0246 1357 2468 3579 2468 3579 468a 3579 468a");
  EXPECT_EQ(drawn(7, 3, 2, 2, true), "0 1 02 13 24 135 246");
  EXPECT_EQ(drawn(8, 4, 1, 1, false).substr(35), "4567");
}

}  // namespace
}  // namespace natten
