#!/bin/sh
# Makes the aligned starts that compare_rivals.yaml names, in runs/align: `sh recipes/tiny/align_rivals.sh`, or with the names of some of them,
# to spread them over processes. A finished one is left as it is, an interrupted one goes on. Quarter of an hour each on one core.
set -e
remember='type: remember, layers: [-1, 1, 3], num_heads: 12, num_kv_heads: 4'
v2="$remember, bidirectional: true, guidance: true"
avg_pool='{type: avg_pool, scale: 3}'
pixel_shuffle='{type: pixel_shuffle, scale: 3}'
token_packer='{type: token_packer, levels: [2, 3, 4, 5], scale: 3, width: 128, num_heads: 4}'

align() {
    vision-remember train recipes/tiny/align.yaml --resume "output_dir=runs/align/$1" "model.projector_weights=embedded/projector_$2" \
        "model.projector=$3" "model.refusion={$4}"
}

for name in ${*:-avg_pool_v2 avg_pool_pooled avg_pool_deepstack avg_pool_sva avg_pool_fastv pixel_shuffle pixel_shuffle_remember \
    pixel_shuffle_v2 token_packer token_packer_remember token_packer_v2}; do
    case $name in
    avg_pool_v2) align $name avg_pool "$avg_pool" "$v2" ;;
    avg_pool_pooled) align $name avg_pool "$avg_pool" "type: remember_pooled${remember#type: remember}" ;;
    avg_pool_deepstack) align $name avg_pool "$avg_pool" 'type: deepstack, cell: [3, 3]' ;;
    avg_pool_sva) align $name avg_pool "$avg_pool" 'type: sva, width: 128, num_heads: 4, positions: 9' ;;
    avg_pool_fastv) align $name avg_pool "$avg_pool" 'type: fastv' ;;
    pixel_shuffle) align $name pixel_shuffle "$pixel_shuffle" 'type: none' ;;
    pixel_shuffle_remember) align $name pixel_shuffle "$pixel_shuffle" "$remember" ;;
    pixel_shuffle_v2) align $name pixel_shuffle "$pixel_shuffle" "$v2" ;;
    token_packer) align $name token_packer "$token_packer" 'type: none' ;;
    token_packer_remember) align $name token_packer "$token_packer" "$remember" ;;
    token_packer_v2) align $name token_packer "$token_packer" "$v2" ;;
    *) echo "no start is called $name" >&2; exit 2 ;;
    esac
done
