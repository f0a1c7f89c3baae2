// Sums of Gaussians on a periodic grid, and the transpose of that sum: the inner loops of physics/splat.py.
//
// Built on first use by physics/splat_kernel.py with the machine's own compiler and called through a plain C
// interface, so that it depends on no version of torch. Its twin in torch is physics/splat_torch.py.
//
// A Gaussian's patch: along each axis the pixels start ... start + count - 1 with start = ceil(c - reach) and
// count = ceil(2 reach). Along x the count is rounded up to whole vectors: more of the true Gaussian does no harm.
// value = weight * exp(-precision |d|^2)          (isotropic, one precision)
// value = weight * exp(-1/2 d^T precision d)      (anisotropic, dim x dim matrix)

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int LANES = 8;
constexpr int MOST = 128;  // pixels of a patch along one axis; the caller refuses more

// Eight numbers at a time, in the vector types that gcc and clang share; left to itself, gcc unrolls loops this short
// and then finds no vectors in them.
template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float vec __attribute__((vector_size(4 * LANES)));
};
template <>
struct Lanes<double> {
  typedef double vec __attribute__((vector_size(8 * LANES)));
};
template <class T>
using Vec = typename Lanes<T>::vec;

template <class T>
inline Vec<T> load(const T *from) {
  Vec<T> v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
template <class T>
inline void store(T *to, Vec<T> v) {
  std::memcpy(to, &v, sizeof v);
}
template <class T>
inline T sum(Vec<T> v) {
  T total = 0;
  for (int i = 0; i < LANES; ++i) total += v[i];
  return total;
}
// x, x + 1, x + 2, ...
template <class T>
inline Vec<T> from(T x) {
  return x + Vec<T>{0, 1, 2, 3, 4, 5, 6, 7};
}

// exp of numbers that are not positive: range reduction and a polynomial, relative error 2e-7, 0 below -25.
inline Vec<float> exp_of(Vec<float> x) {
  typedef int32_t ints __attribute__((vector_size(4 * LANES)));
  const Vec<float> least = Vec<float>{} - 25.0f;
  const ints kept = x > least;  // far smaller ones are 0: products of them would be denormal, which is slow
  x = x < least ? least : x;
  const Vec<float> shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vec<float> whole = shifted - 12582912.0f;
  const Vec<float> rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  Vec<float> p = rest * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * rest + 8.3334519073e-3f;
  p = p * rest + 4.1665795894e-2f;
  p = p * rest + 1.6666665459e-1f;
  p = p * rest + 5.0000001201e-1f;
  p = p * rest * rest + rest + 1.0f;
  ints bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  bits = ((bits + 127) << 23) & kept;  // the low bits of `shifted` are the integer
  Vec<float> scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return p * scale;
}
inline Vec<double> exp_of(Vec<double> x) {
  for (int i = 0; i < LANES; ++i) x[i] = std::exp(x[i]);
  return x;
}
inline float exp_one(float x) { return std::exp(x); }
inline double exp_one(double x) { return std::exp(x); }

// What the caller hands over; strides are 0 where all images share a field.
template <class T>
struct Cloud {
  const T *centre, *weight, *precision, *reach;
  int64_t centre_step, weight_step, precision_step, reach_step;
  int64_t n, size;
};

// One axis of one patch: the first pixel, how many, and the offsets from the centre.
template <class T>
struct Axis {
  int64_t start = 0, count = 1;
  void place(T centre, T reach) {
    start = static_cast<int64_t>(std::ceil(centre - reach));
    count = static_cast<int64_t>(std::ceil(2 * reach));
    if (count < 1) count = 1;
  }
};

inline int64_t wrapped(int64_t i, int64_t size) {
  if (i >= 0 && i < size) return i;  // a division takes as long as a row
  i %= size;
  return i < 0 ? i + size : i;
}

template <class T, int D>
void image_of_row(int64_t j, const Cloud<T> &c, int64_t image, Axis<T> *axes, T *centre) {
  for (int a = 0; a < D; ++a) {
    centre[a] = c.centre[image * c.centre_step + j * D + a];
    axes[a].place(centre[a], c.reach[image * c.reach_step + j * D + a]);
  }
}

// D: dimensions. V: vectors along x. ISO: one precision or a matrix. TO_GRID: add to the grid, else gather gradients.
template <class T, int D, int V, bool ISO, bool TO_GRID>
void one(const Cloud<T> &c, int64_t image, int64_t j, const Axis<T> *axes, const T *centre, T *grid,
         T *to_centre, T *to_weight, T *to_precision) {
  constexpr int W = V * LANES;
  const int64_t size = c.size;
  const T weight = c.weight[image * c.weight_step + j];
  const T *p = c.precision + image * c.precision_step + (ISO ? j : j * D * D);
  Vec<T> dx[V], ex[V];
  T ey[MOST];
  for (int v = 0; v < V; ++v) dx[v] = from(T(axes[0].start + v * LANES) - centre[0]);
  if (ISO) {
    for (int v = 0; v < V; ++v) ex[v] = exp_of(-p[0] * dx[v] * dx[v]);
    for (int64_t l = 0; l < axes[1].count; l += LANES) {
      const Vec<T> dy = from(T(axes[1].start + l) - centre[1]);
      store(ey + l, exp_of(-p[0] * dy * dy));
    }
  }
  // Sums over rows, kept apart per column: gradient times value, times dy, dz, dy^2, dy dz, dz^2.
  Vec<T> s0[V] = {}, sy[V] = {}, sz[V] = {}, syy[V] = {}, syz[V] = {}, szz[V] = {};
  const int64_t x = wrapped(axes[0].start, size);
  const bool inside = x + W <= size;
  T spare[W];
  int64_t at_edge[W];
  if (!inside)
    for (int i = 0; i < W; ++i) at_edge[i] = (x + i) % size;
  const int64_t layers = D == 3 ? axes[2].count : 1;
  for (int64_t k = 0; k < layers; ++k) {
    const T dz = D == 3 ? T(axes[D - 1].start + k) - centre[D - 1] : T(0);
    T *layer = grid + (D == 3 ? wrapped(axes[D - 1].start + k, size) * size * size : 0);
    const T ez = (TO_GRID ? weight : T(1)) * (ISO && D == 3 ? exp_one(-p[0] * dz * dz) : T(1));
    int64_t y = wrapped(axes[1].start, size);
    for (int64_t l = 0; l < axes[1].count; ++l, y = y + 1 == size ? 0 : y + 1) {
      const T dy = T(axes[1].start + l) - centre[1];
      T *line = layer + y * size;
      Vec<T> e[V];
      if (ISO) {
        const T along = ez * ey[l];
        for (int v = 0; v < V; ++v) e[v] = along * ex[v];
      } else {
        const T b = D == 3 ? p[1] * dy + p[2] * dz : p[1] * dy;
        const T rest = D == 3 ? p[D + 1] * dy * dy + 2 * p[D + 2] * dy * dz + p[D * D - 1] * dz * dz
                              : p[D + 1] * dy * dy;
        for (int v = 0; v < V; ++v) e[v] = ez * exp_of(T(-0.5) * ((p[0] * dx[v] + 2 * b) * dx[v] + rest));
      }
      if (TO_GRID) {
        if (inside) {
          for (int v = 0; v < V; ++v) store(line + x + v * LANES, load(line + x + v * LANES) + e[v]);
        } else {
          for (int i = 0; i < W; ++i) line[at_edge[i]] += e[i / LANES][i % LANES];
        }
        continue;
      }
      if (!inside)
        for (int i = 0; i < W; ++i) spare[i] = line[at_edge[i]];
      const T *g = inside ? line + x : spare;
      for (int v = 0; v < V; ++v) {
        const Vec<T> t = load(g + v * LANES) * e[v];
        s0[v] += t;
        sy[v] += dy * t;
        syy[v] += (dy * dy) * t;
        if (D == 3) {
          sz[v] += dz * t;
          syz[v] += (dy * dz) * t;
          szz[v] += (dz * dz) * t;
        }
      }
    }
  }
  if (TO_GRID) return;
  Vec<T> a0{}, ax{}, ay{}, az{}, axx{}, axy{}, axz{}, ayy{}, ayz{}, azz{};
  for (int v = 0; v < V; ++v) {
    a0 += s0[v];
    ax += dx[v] * s0[v];
    axx += dx[v] * dx[v] * s0[v];
    ay += sy[v];
    axy += dx[v] * sy[v];
    ayy += syy[v];
    if (D == 3) {
      az += sz[v];
      axz += dx[v] * sz[v];
      ayz += syz[v];
      azz += szz[v];
    }
  }
  const T m0 = sum<T>(a0), mx = sum<T>(ax), my = sum<T>(ay), mxx = sum<T>(axx), mxy = sum<T>(axy), myy = sum<T>(ayy);
  const T mz = sum<T>(az), mxz = sum<T>(axz), myz = sum<T>(ayz), mzz = sum<T>(azz);
  const int64_t at = image * c.n + j;
  const T m1[3] = {mx, my, mz};
  const T m2[3][3] = {{mxx, mxy, mxz}, {mxy, myy, myz}, {mxz, myz, mzz}};
  to_weight[at] = m0;
  if (ISO) {
    for (int a = 0; a < D; ++a) to_centre[at * D + a] = 2 * p[0] * weight * m1[a];
    to_precision[at] = -weight * (mxx + myy + mzz);
  } else {
    for (int a = 0; a < D; ++a) {
      T sum = 0;
      for (int b = 0; b < D; ++b) {
        sum += p[a * D + b] * m1[b];
        to_precision[(at * D + a) * D + b] = T(-0.5) * weight * m2[a][b];
      }
      to_centre[at * D + a] = weight * sum;
    }
  }
}

template <class T, int D, bool ISO, bool TO_GRID>
void images(const Cloud<T> &c, int64_t first, int64_t last, T *grid, T *to_centre, T *to_weight, T *to_precision) {
  int64_t pixels = 1;
  for (int a = 0; a < D; ++a) pixels *= c.size;
  for (int64_t image = first; image < last; ++image) {
    T *own = grid + image * pixels;
    for (int64_t j = 0; j < c.n; ++j) {
      Axis<T> axes[3];
      T centre[3];
      image_of_row<T, D>(j, c, image, axes, centre);
      const int64_t vectors = (axes[0].count + LANES - 1) / LANES;
#define CRYORBIT_WIDTH(V)                                                                                     \
  one<T, D, V, ISO, TO_GRID>(c, image, j, axes, centre, own, to_centre, to_weight, to_precision)
      switch (vectors) {
        case 1: CRYORBIT_WIDTH(1); break;
        case 2: CRYORBIT_WIDTH(2); break;
        case 3: CRYORBIT_WIDTH(3); break;
        case 4: CRYORBIT_WIDTH(4); break;
        case 5:
        case 6: CRYORBIT_WIDTH(6); break;
        case 7:
        case 8: CRYORBIT_WIDTH(8); break;
        default: CRYORBIT_WIDTH(16); break;
      }
#undef CRYORBIT_WIDTH
    }
  }
}

template <class T, bool TO_GRID>
void any(int dim, int iso, const Cloud<T> &c, int64_t first, int64_t last, T *grid, T *a, T *b, T *p) {
  if (dim == 2 && iso) images<T, 2, true, TO_GRID>(c, first, last, grid, a, b, p);
  if (dim == 2 && !iso) images<T, 2, false, TO_GRID>(c, first, last, grid, a, b, p);
  if (dim == 3 && iso) images<T, 3, true, TO_GRID>(c, first, last, grid, a, b, p);
  if (dim == 3 && !iso) images<T, 3, false, TO_GRID>(c, first, last, grid, a, b, p);
}

}  // namespace

#define CRYORBIT_EXPORT(T, NAME)                                                                              \
  extern "C" void splat_##NAME(int dim, int iso, int64_t n, int64_t size, int64_t first, int64_t last,         \
                               const T *centre, const T *weight, const T *precision, const T *reach,           \
                               const int64_t *steps, T *grid) {                                                \
    const Cloud<T> c{centre, weight, precision, reach, steps[0], steps[1], steps[2], steps[3], n, size};       \
    any<T, true>(dim, iso, c, first, last, grid, nullptr, nullptr, nullptr);                                   \
  }                                                                                                            \
  extern "C" void gather_##NAME(int dim, int iso, int64_t n, int64_t size, int64_t first, int64_t last,        \
                                const T *centre, const T *weight, const T *precision, const T *reach,          \
                                const int64_t *steps, T *grid, T *to_centre, T *to_weight, T *to_precision) {  \
    const Cloud<T> c{centre, weight, precision, reach, steps[0], steps[1], steps[2], steps[3], n, size};       \
    any<T, false>(dim, iso, c, first, last, grid, to_centre, to_weight, to_precision);                         \
  }

CRYORBIT_EXPORT(float, float)
CRYORBIT_EXPORT(double, double)
