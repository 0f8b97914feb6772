// Window arithmetic against the definition, for every small problem and in both directions.
#include "definition/window.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <string>
#include <vector>

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
