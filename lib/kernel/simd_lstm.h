/* The loops of an LSTM, over the vector of simd_body.h, which includes this file. */

/* y[r] += sum_i p[r][i] b[i] for R rows and V vectors, starting at column j. */
static inline SIMD_TARGET __attribute__((always_inline)) void lstm_tile(const int R, const int V, float *const *y,
                                                                        const float *const *p, const float *b, size_t k,
                                                                        size_t n, size_t j) {
    vec s[4][4];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) s[r][v] = v_load(y[r] + j + (size_t)v * W);
    for (size_t i = 0; i < k; i++) {
        const float *row = b + i * n + j;
        for (int r = 0; r < R; r++) {
            vec a = v_set(p[r][i]);
            for (int v = 0; v < V; v++) s[r][v] = v_fma(a, v_load(row + (size_t)v * W), s[r][v]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++) v_store(y[r] + j + (size_t)v * W, s[r][v]);
}

/* Each element is summed in the order of i, whatever the number of rows. */
static inline SIMD_TARGET __attribute__((always_inline)) void
lstm_strip(const int R, const int V, float *const *y, const float *const *p, const float *b, size_t k, size_t n) {
    size_t j = 0;
    for (; j + (size_t)V * W <= n; j += (size_t)V * W) lstm_tile(R, V, y, p, b, k, n, j);
    for (; j < n; j += W)
        for (int r = 0; r < R; r++) {
            vec s = load(y[r] + j, n - j);
            for (size_t i = 0; i < k; i++) s = v_fma(v_set(p[r][i]), load(b + i * n + j, n - j), s);
            store(y[r] + j, s, n - j);
        }
}

FN void op_mix_block(float *const *y, const float *const *p, size_t rows, const float *b, size_t k, size_t n) {
    switch (rows) {
    case 1: lstm_strip(1, 4, y, p, b, k, n); break;
    case 2: lstm_strip(2, 4, y, p, b, k, n); break;
    case 3: lstm_strip(3, 2, y, p, b, k, n); break;
    case 4: lstm_strip(4, 2, y, p, b, k, n); break;
    }
}

FN void op_lstm_cell(float *gates, float *cell, float *h, const float *before, size_t units) {
    float *gi = gates, *gf = gi + units, *gg = gf + units, *go = gg + units;
    for (size_t j = 0; j < units; j += W) {
        size_t left = units - j;
        vec i = v_sigmoid(load(gi + j, left)), f = v_sigmoid(load(gf + j, left));
        vec g = v_tanh(load(gg + j, left)), o = v_sigmoid(load(go + j, left));
        vec c = v_mul(i, g);
        if (before) c = v_fma(f, load(before + j, left), c);
        store(gi + j, i, left);
        store(gf + j, f, left);
        store(gg + j, g, left);
        store(go + j, o, left);
        store(cell + j, c, left);
        store(h + j, v_mul(o, v_tanh(c)), left);
    }
}

/* derivative: s (1 - s) for a sigmoid, 1 - t^2 for a tanh */
FN void op_lstm_cell_backward(float *dgates, float *dcell, const float *dh, const float *gates, const float *cell,
                              const float *before, size_t units) {
    const float *gi = gates, *gf = gi + units, *gg = gf + units, *go = gg + units;
    vec one = v_set(1);
    for (size_t j = 0; j < units; j += W) {
        size_t left = units - j;
        vec i = load(gi + j, left), f = load(gf + j, left), g = load(gg + j, left), o = load(go + j, left);
        vec t = v_tanh(load(cell + j, left)), d = load(dh + j, left), b = before ? load(before + j, left) : v_set(0);
        vec dc = v_fma(v_mul(d, o), v_sub(one, v_mul(t, t)), load(dcell + j, left));
        store(dgates + j, v_mul(v_mul(dc, g), v_mul(i, v_sub(one, i))), left);
        store(dgates + units + j, v_mul(v_mul(dc, b), v_mul(f, v_sub(one, f))), left);
        store(dgates + 2 * units + j, v_mul(v_mul(dc, i), v_sub(one, v_mul(g, g))), left);
        store(dgates + 3 * units + j, v_mul(v_mul(d, t), v_mul(o, v_sub(one, o))), left);
        store(dcell + j, v_mul(dc, f), left);
    }
}
