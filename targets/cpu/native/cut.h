// Where top-k, top-p (Holtzman et al. 2020) and min-p cut a row: the smallest scaled logit that stays, found without sorting the row.
//
// A histogram of the scaled logits (0 at the row's largest, negative elsewhere) says which bin holds the cut; only what lies in that
// bin is sorted. Tokens 16 and more below the largest seldom matter: they are left out at first.
#pragma once
#include "elementary.h"
#include "masks.h"

static constexpr int BINS = 4096;
static constexpr float BINS_PER_UNIT = 32.0f, USUAL_REACH = 16.0f;

// One row's scaled logits and the room to work on them: `scaled` and `sorted` of `padded` elements (a multiple of WIDTH, filled up
// with minus infinity), `counts` and `masses` of BINS.
struct RowSpace {
    float* scaled;
    float* sorted;
    int32_t* counts;
    double* masses;
    int64_t padded;
};

struct Filter {
    int64_t top_k;  // 0: all
    double top_p;
    float least;  // the scaled logit of a token min_p times as likely as the likeliest
};

// Sorts n values, largest first, in place and in n log n steps whatever they are.
static inline void sort_descending(float* x, int64_t n) {
    auto sink = [x](int64_t at, int64_t end) {
        float value = x[at];
        for (int64_t child; (child = 2 * at + 1) < end; at = child) {
            if (child + 1 < end && x[child + 1] < x[child]) child++;
            if (!(x[child] < value)) break;
            x[at] = x[child];
        }
        x[at] = value;
    };
    for (int64_t at = n / 2; at-- > 0;) sink(at, n);
    for (int64_t end = n; end-- > 1;) {
        float smallest = x[0];
        x[0] = x[end];
        x[end] = smallest;
        sink(0, end);
    }
}

static inline double weight_of(float scaled) { return exponential(all(scaled))[0]; }

// Bins as floats, so that the bin of a value is the same wherever it is asked for.
static inline Vec places(Vec scaled) { return vmin((zero() - scaled) * all(BINS_PER_UNIT), all(BINS - 1)); }

// Counts and masses of the values that are at least `floor`; gives back the mass of all, whatever their size.
static inline double fill_bins(const RowSpace& row, float floor) {
    int64_t bins = floor >= -USUAL_REACH ? static_cast<int64_t>(USUAL_REACH * BINS_PER_UNIT) + 1 : BINS;
    for (int64_t bin = 0; bin < bins; bin++) row.counts[bin] = 0, row.masses[bin] = 0;
    WideSum total;
    float weights[WIDTH], bin_of[WIDTH];
    for (int64_t k = 0; k < row.padded; k += WIDTH) {
        Vec scaled = load(row.scaled + k), weight = exponential(scaled);
        total.add(weight);
        uint32_t counted = lanes_at_least(scaled, all(floor));
        if (!counted) continue;
        store(weights, weight);
        store(bin_of, places(scaled));
        for_lanes(counted, [&](int lane) {
            int bin = static_cast<int>(bin_of[lane]);
            row.counts[bin]++;
            row.masses[bin] += static_cast<double>(weights[lane]);
        });
    }
    return total.total();
}

// The values of a bin, largest first, into `sorted`; gives back how many.
static inline int64_t sort_bin(const RowSpace& row, int bin, float floor) {
    int64_t count = 0;
    const Vec from = all(static_cast<float>(bin)), to = all(static_cast<float>(bin + 1));
    for (int64_t k = 0; k < row.padded; k += WIDTH) {
        Vec scaled = load(row.scaled + k), place = places(scaled);
        uint32_t inside = lanes_at_least(place, from) & lanes_above(to, place) & lanes_at_least(scaled, all(floor));
        for_lanes(inside, [&](int lane) { row.sorted[count++] = row.scaled[k + lane]; });
    }
    sort_descending(row.sorted, count);
    return count;
}

// The cut of top-k and top-p into `cut`; false when it lies below `floor`.
static inline bool find_cut(const RowSpace& row, const Filter& filter, float floor, float& cut) {
    double mass = fill_bins(row, floor);
    int last_bin = floor >= -USUAL_REACH ? static_cast<int>(USUAL_REACH * BINS_PER_UNIT) : BINS - 1;
    int64_t in_bin = 0;
    cut = -__builtin_inff();
    if (filter.top_k) {
        int64_t before = 0;
        double above = 0;
        int bin = 0;
        for (; bin <= last_bin && before + row.counts[bin] < filter.top_k; bin++) {
            before += row.counts[bin];
            above += row.masses[bin];
        }
        if (bin > last_bin) return false;
        last_bin = bin;
        in_bin = sort_bin(row, bin, floor);
        cut = row.sorted[filter.top_k - before - 1];
        if (filter.top_p >= 1) return true;
        mass = above;
        for (int64_t i = 0; i < in_bin && row.sorted[i] >= cut; i++) mass += weight_of(row.sorted[i]);
    }
    double target = filter.top_p * mass, running = 0;
    int bin = 0;
    for (; bin <= last_bin && running + row.masses[bin] < target; bin++) running += row.masses[bin];
    if (bin > last_bin) return filter.top_k != 0;  // with top-k: by rounding alone, everything it keeps stays
    if (!filter.top_k || bin != last_bin) in_bin = sort_bin(row, bin, floor);
    float by_mass = cut;
    for (int64_t i = 0; i < in_bin && row.sorted[i] >= cut; i++) {
        by_mass = row.sorted[i];
        running += weight_of(by_mass);
        if (running >= target) break;
    }
    cut = by_mass;
    return true;
}

// The smallest scaled logit that stays. Ties stay together, and the likeliest token stays whatever the filter says.
static inline float lowest_kept(const RowSpace& row, const Filter& filter) {
    float cut = -__builtin_inff(), least = filter.least < 0 ? filter.least : 0.0f;
    bool by_rank = filter.top_k != 0, by_mass = filter.top_p < 1;
    if (!by_rank && !by_mass) return least;
    float floor = least > -USUAL_REACH ? least : -USUAL_REACH;
    if (!find_cut(row, filter, floor, cut)) {
        if (floor == least && !(by_rank && by_mass)) return least;
        if (!find_cut(row, filter, -__builtin_inff(), cut)) return least;
    }
    return cut < least ? least : cut;
}
